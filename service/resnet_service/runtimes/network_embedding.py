"""Find the embedding of a network: the input of its classifier, the linear layer that computes the logits."""

from typing import Final

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional

_IDENTITIES: Final = (nn.Dropout, nn.Identity)
"""Layers that change nothing in evaluation mode."""


def output_embedding(network: GraphModule) -> int | None:
    """Let a network return (logits, embedding) instead of logits, and return the length of an embedding.

    The embedding is [N, length]. It is None, and so is the length, if another layer computes the logits: a
    convolution in SqueezeNet, or the mean of two linear layers.
    """
    output = next(node for node in reversed(network.graph.nodes) if node.op == "output")
    logits = output.args[0]
    assert isinstance(logits, Node)
    embedding, length = _find_embedding(network, logits)
    output.args = ((logits, embedding),)
    network.recompile()
    return length


def _find_embedding(network: GraphModule, node: Node) -> tuple[Node | None, int | None]:
    while node.op in ("call_module", "call_function") and node.args and isinstance(node.args[0], Node):
        source = node.args[0]
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, nn.Linear):
                return source, module.in_features
            if not isinstance(module, _IDENTITIES):
                break
        elif node.target is functional.linear:
            weight = node.args[1]
            if isinstance(weight, Node) and weight.op == "get_attr":
                return source, network.get_parameter(str(weight.target)).shape[1]
            break
        elif node.target is not functional.dropout:
            break
        node = source
    return None, None
