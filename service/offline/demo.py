"""Pictures for those who have none at hand."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from service.images.drawn import scenes
from service.offline.sources import Source

PHOTOGRAPHS: Final = (
    "https://github.com/pytorch/hub/raw/master/images/dog.jpg",
    "http://images.cocodataset.org/val2017/000000039769.jpg",
    "https://huggingface.co/datasets/huggingface/documentation-images/resolve/main/transformers/tasks/car.jpg",
)
"""A dog, two cats and a car that many tutorials use; fetched only when asked for."""


def drawn() -> Iterator[Source]:
    """Yield the pictures that are drawn here: nothing is read or fetched."""
    for name, data in scenes().items():
        yield Source(f"{name} (drawn)", partial(bytes, data))
