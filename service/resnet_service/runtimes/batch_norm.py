"""Fold batch normalization into the convolution before it: a layer less, with the same results."""

from copy import deepcopy
from typing import Final

from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.nn.utils import fuse_conv_bn_eval

from resnet_service.runtimes.shared_lock import SharedLock

TRACING: Final = SharedLock()
"""Batches share this lock: while torch.fx traces a network, it replaces a method of all networks of the
process, so that batches would fail."""


def fold_batch_norms(network: nn.Module) -> GraphModule:
    """Return a copy of a network in evaluation mode whose batch normalizations are folded where possible.

    One is folded if it is the only user of a convolution's output. The network must be traceable by torch.fx,
    as all classifiers of torchvision are.
    """
    copy = deepcopy(network)
    with TRACING.alone():
        folded = symbolic_trace(copy)
    modules = dict(folded.named_modules())
    calls = [node for node in folded.graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    for node in calls:
        normalization = modules[node.target]
        if not isinstance(normalization, nn.BatchNorm2d) or not node.args:
            continue
        producer = node.args[0]
        if producer.op != "call_module":
            continue
        convolution = modules[producer.target]
        is_shared = len(producer.users) > 1 or max(map(targets.count, (node.target, producer.target))) > 1
        if type(convolution) is nn.Conv2d and normalization.track_running_stats and not is_shared:
            folded.add_submodule(producer.target, fuse_conv_bn_eval(convolution, normalization))
            node.replace_all_uses_with(producer)
            folded.graph.erase_node(node)
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded
