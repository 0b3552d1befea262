"""Images for those who have none at hand."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from resnet_service.images.synthetic import synthetic_scenes
from resnet_service.inference.inputs import ImageInput

PHOTOGRAPHS: Final = (
    "https://github.com/pytorch/hub/raw/master/images/dog.jpg",
    "http://images.cocodataset.org/val2017/000000039769.jpg",
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/transformers/tasks/car.jpg",
)
"""A dog, two cats and a car that many tutorials use; fetched only when asked for."""


def demo_images() -> Iterator[ImageInput]:
    """Yield the images that are drawn here: nothing is read or fetched."""
    for name, data in synthetic_scenes().items():
        yield ImageInput(f"{name} (drawn)", partial(bytes, data))
