"""Grad-CAM: the places of an image that speak for a class.

Source: Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from resnet_service.errors import InferenceError
from resnet_service.explanations.layers import attach_grid_view
from resnet_service.images import Crop
from resnet_service.images.heat_map import Heat
from resnet_service.models import Model
from resnet_service.runtimes.batch_norm import TRACING
from resnet_service.runtimes.pytorch import translate_device_errors
from resnet_service.runtimes.runtime import normalization


@dataclass(frozen=True)
class Explanation:
    """The class that was explained, its label and probability, and which places of the image speak for it.

    heat: [H, W], 0 to 1, for equal parts of the crop. The largest value is 1, unless no place speaks for the
        class: then all are 0. Its size is that of the last layer with places: 7 x 7 for most networks.
    """

    class_id: int
    label: str
    probability: float
    heat: Heat


class Explainer:
    """Explains what a network sees, in fp32, one image at a time; not safe for several threads at once.

        require_captum()
        explainer = Explainer(load_model("efficientnet_lite0"), torch.device("cpu"))
        explanation = explainer.explain(crop)

    It takes the network over: nothing else may use the same `Model`.
    """

    def __init__(self, model: Model, device: torch.device, threads: int | None = None) -> None:
        """Move the network to `device`; `threads` limits the threads of the CPU, by default all.

        Raises UnsupportedModelError if the model has no network, or one without a layer to explain, and
        DeviceError or DeviceOutOfMemoryError.
        """
        self._device = device
        self._threads = threads
        self._labels = model.labels
        with TRACING.shared(), translate_device_errors(), _limited_threads(threads):
            self._network = model.network.to(device).requires_grad_(requires_grad=False)
            self._mean, self._std = (values.to(device) for values in normalization(model.preprocessing))
            self._view = attach_grid_view(self._network, model.preprocessing.crop)

    def explain(self, crop: Crop, class_id: int | None = None) -> Explanation:
        """Explain a class of `crop` [S, S, 3]: that with the index `class_id`, by default the most probable.

        Raises InferenceError if the network's output is not finite, DeviceError and DeviceOutOfMemoryError.
        """
        from captum.attr import LayerGradCam  # takes a second

        with TRACING.shared(), translate_device_errors(), _limited_threads(self._threads):
            pixels = torch.tensor(crop, device=self._device).permute(2, 0, 1)[None]
            images = (pixels - self._mean) / self._std
            with torch.no_grad():
                probabilities = self._network(images)[0].softmax(0)
            if not probabilities.isfinite().all():
                raise InferenceError("the network returned values that are not finite")
            target = int(probabilities.argmax()) if class_id is None else class_id
            method = LayerGradCam(self._network, self._view)
            maps = method.attribute(images.requires_grad_(), target=target, relu_attributions=True)
            heat = maps.detach()[0, 0]
            largest = heat.max()
            if largest > 0:
                heat = heat / largest
            values = heat.float().cpu().numpy()
            return Explanation(target, self._labels[target], float(probabilities[target]), values)


@contextmanager
def _limited_threads(threads: int | None) -> Iterator[None]:
    """Limit the threads of the calling thread's operations.

    PyTorch gives the number to threads that start meanwhile as well, so it is restored.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
