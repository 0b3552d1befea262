"""The best classes of images -> the outputs that a request asks for, as the body of its answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_service.models import Model
from resnet_service.runtimes import TopKResult
from resnet_service.server.v2 import metadata as interface
from resnet_service.server.v2 import tensors
from resnet_service.server.v2.requests import Inference
from resnet_service.server.v2.schemas import InferResponse, RequestOutput, ResponseOutput


def classes_needed(inference: Inference, model: Model, top_k: int) -> int:
    """Return how many of an image's best classes the outputs show, where `top_k` are asked for."""
    return max(
        _classified(output, model) if output.name == interface.PROBABILITIES else top_k
        for output in inference.outputs
    )


def encode(
    inference: Inference, model: Model, top_k: int, results: Sequence[TopKResult]
) -> tuple[bytes, int | None]:
    """Return the body and the length of its JSON, None where that is all.

    `results` are the classes needed, of each image.
    """
    best = TopKResult(
        np.stack([result.class_ids for result in results]),
        np.stack([result.probabilities for result in results]),
    )
    described: list[ResponseOutput] = []
    binary: list[bytes] = []
    for output in inference.outputs:
        values = _values(output, model, top_k, best)
        in_binary = output.parameters.binary_data
        if inference.parameters.binary_data_output if in_binary is None else in_binary:
            binary.append(tensors.to_bytes(values))
            parameters, data = {"binary_data_size": len(binary[-1])}, None
        else:
            parameters, data = None, values.ravel().tolist()
        described.append(
            ResponseOutput(
                name=output.name,
                datatype=tensors.datatype(values),
                shape=list(values.shape),
                parameters=parameters,
                data=data,
            )
        )
    response = InferResponse(
        model_name=model.name, model_version=interface.VERSION, id=inference.id, outputs=described
    )
    head = response.model_dump_json(exclude_none=True).encode()
    return (b"".join([head, *binary]), len(head)) if binary else (head, None)


def _classified(output: RequestOutput, model: Model) -> int:
    """Return how many classes an output of probabilities shows: all, or as many as are to be in words."""
    return min(output.parameters.classification or len(model.labels), len(model.labels))


def _values(output: RequestOutput, model: Model, top_k: int, best: TopKResult) -> npt.NDArray[Any]:
    ids, probabilities = best.class_ids[:, :top_k], best.probabilities[:, :top_k]
    if output.name == interface.CLASS_ID:
        return ids
    if output.name == interface.PROBABILITY:
        return probabilities
    labels = np.array(model.labels, object)
    if output.name == interface.LABEL:
        return labels[ids]
    if output.parameters.classification is not None:
        count = _classified(output, model)
        return _in_words(best.class_ids[:, :count], best.probabilities[:, :count], labels)
    in_order = np.empty_like(best.probabilities)
    np.put_along_axis(in_order, best.class_ids, best.probabilities, axis=1)
    return in_order


def _in_words(
    ids: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.object_]
) -> npt.NDArray[np.object_]:
    """Return "probability:index:label" for each class, as Triton writes it."""
    classes = zip(probabilities.flat, ids.flat, labels[ids].flat, strict=True)
    words = [f"{probability:f}:{class_id}:{label}" for probability, class_id, label in classes]
    return np.array(words, object).reshape(ids.shape)
