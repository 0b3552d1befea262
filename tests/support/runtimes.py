"""Runtimes on the CPU, and their probabilities."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from resnet_service.devices import Precision
from resnet_service.images import Crop
from resnet_service.models import Model
from resnet_service.runtimes import Runtime
from resnet_service.runtimes.selection import RuntimeName, create_runtimes

CPU = torch.device("cpu")


def create_runtime(model: Model, name: RuntimeName, precision: Precision) -> Runtime:
    """Create the only runtime of a model on the CPU."""
    if name == "openvino":
        pytest.importorskip("openvino", reason="requires the extra openvino")
    [runtime] = create_runtimes(model, [CPU], name=name, precision=precision, streams_per_device=1)
    assert (runtime.name, runtime.precision) == (name, precision)
    return runtime


def probabilities(runtime: Runtime, crops: Sequence[Crop], classes: int = 10) -> torch.Tensor:
    """Return the probabilities of all classes, [N, classes], in the order of the classes."""
    best = runtime.run(crops, classes)
    assert (np.diff(best.probabilities, axis=1) <= 0).all()
    ordered = np.zeros_like(best.probabilities)
    np.put_along_axis(ordered, best.class_ids, best.probabilities, 1)
    return torch.from_numpy(ordered)
