"""Resizing and cropping equal torchvision's transforms, and preprocessing is validated."""

from typing import Any

import pytest
from PIL import Image
from torchvision.models import ResNet50_Weights, ViT_H_14_Weights

from resnet_service.images import Preprocessing, decode_image
from tests.support import PHOTOGRAPHS
from tests.support.images import difference, encode, transformed


@pytest.mark.parametrize("weights", [ResNet50_Weights.IMAGENET1K_V1, ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1])
@pytest.mark.parametrize("name", ["astronaut.jpg", "cat.jpg", "coffee.jpg"])
def test_crop_equals_the_transforms_of_published_weights(weights: Any, name: str) -> None:
    """On photographs a crop equals torchvision's within 0.1 gray levels, bilinear and bicubic."""
    transform = weights.transforms()
    preprocessing = Preprocessing(
        transform.resize_size[0], transform.crop_size[0], (0, 0, 0), (1, 1, 1), transform.interpolation.value
    )
    image = (PHOTOGRAPHS / name).read_bytes()
    assert difference(decode_image(image, preprocessing), transformed(image, transform)) < 0.1


@pytest.mark.parametrize("size", [85, 42])
def test_jpeg_decoded_at_reduced_scale_equals_the_transforms(size: int) -> None:
    """A photograph of 512 pixels decoded at a half or a quarter of its size differs by under 1 gray level."""
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms(resize_size=size, crop_size=size)
    image = (PHOTOGRAPHS / "astronaut.jpg").read_bytes()
    crop = decode_image(image, Preprocessing(size, size, (0, 0, 0), (1, 1, 1)))
    assert difference(crop, transformed(image, transform)) < 1


def test_elongated_image_with_bicubic_interpolation() -> None:
    """20,000 x 1 pixels would be resized to a width of 10 million; only the crop is computed."""
    bicubic = Preprocessing(518, 518, (0, 0, 0), (1, 1, 1), "bicubic")
    assert decode_image(encode(Image.new("1", (20_000, 1)), "PNG"), bicubic).shape == (518, 518, 3)


@pytest.mark.parametrize(
    "values",
    [
        {"resize": 10, "crop": 11},
        {"resize": 0, "crop": 0},
        {"resize": 10, "crop": 10, "std": (1.0, 0.0, 1.0)},
    ],
)
def test_invalid_preprocessing_is_rejected(values: dict[str, object]) -> None:
    """A crop larger than the resized image and a standard deviation of zero raise ValueError."""
    with pytest.raises(ValueError, match=r"crop|std"):
        Preprocessing(**{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **values})  # type: ignore[arg-type]
