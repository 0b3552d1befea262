"""Hostile input: images that are invalid, damaged or decompression bombs, and malformed request bodies."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from load_tests.fuzz import parser_properties, strategies
from load_tests.fuzz.corpus import corpus
from resnet_service.errors import InvalidImageError, PayloadTooLarge, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from resnet_service.models import ModelDescription
from tests.support.server import Running

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MODEL = ModelDescription("test", tuple("abcdefghij"), SMALL, "test")
FILE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "heic", "exe", "")
BATCH_SIZE = 64


@pytest.fixture(scope="module")
def inputs() -> dict[str, bytes]:
    """Return the corpus by name."""
    return dict(corpus())


def examples(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run `count` examples, the same each time, without hypothesis' database."""
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def test_corpus_is_deterministic_with_unique_names(inputs: dict[str, bytes]) -> None:
    """The corpus has over 5,000 inputs with unique names, and the same content each time."""
    second = list(corpus())
    assert len(second) == len(inputs) > 5000
    assert dict(second) == inputs


def test_each_input_decodes_or_raises_typed_error(inputs: dict[str, bytes]) -> None:
    """Decoding returns a crop or raises one of three errors, whatever the data."""
    unexpected = {}
    for name, data in inputs.items():
        try:
            assert decode_image(data, SMALL).shape == (32, 32, 3)
        except (InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            pass
        except Exception as error:  # noqa: BLE001
            unexpected[name] = repr(error)
    assert not unexpected


def test_valid_images_of_the_corpus_are_decoded(inputs: dict[str, bytes]) -> None:
    """All valid images of the corpus are decoded, except those with 32-bit samples, which are unsupported."""
    rejected = set()
    for name, data in inputs.items():
        if name.startswith("whole/"):
            try:
                decode_image(data, SMALL)
            except UnsupportedMediaType:
                rejected.add(name)
    assert rejected == {"whole/tiff/I", "whole/tiff/F"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc for the peak memory")
def test_decompression_bombs_take_under_100_mb(inputs: dict[str, bytes]) -> None:
    """Files that would expand to gigabytes are rejected, or are not expanded."""
    process = Path("/proc/self")
    for name, data in inputs.items():
        if not name.startswith("bomb/"):
            continue
        (process / "clear_refs").write_text("5", encoding="ascii")  # resets the peak
        before_kb = memory_kb(process, "VmRSS")
        with suppress(InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            decode_image(data, SMALL, max_pixels=2_000_000)
        assert memory_kb(process, "VmHWM") - before_kb < 100_000, name


def memory_kb(process: Path, name: str) -> int:
    lines = (process / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_corpus_over_http_returns_one_result_per_input(
    server: Running, inputs: dict[str, bytes], jpeg: bytes
) -> None:
    """With any file suffix and in any order, each input has predictions or a client error (413, 415, 422)."""
    generator = random.Random(0)
    names = list(inputs)
    generator.shuffle(names)
    for start in range(0, len(names), BATCH_SIZE):
        batch = names[start : start + BATCH_SIZE]
        parts = [
            ("file", (f"{number}.{generator.choice(FILE_SUFFIXES)}", inputs[name]))
            for number, name in enumerate(batch)
        ]
        response = server.client.post("/predict/batch?top_k=1", files=parts)
        assert response.status_code == 200, (batch, response.text)
        results = response.json()["results"]
        assert [result["filename"] for result in results] == [filename for _, (filename, _) in parts]
        for name, result in zip(batch, results, strict=True):
            assert "predictions" in result or result["error"]["status"] in (413, 415, 422), (name, result)
    response = server.client.post("/predict", files={"file": ("valid.jpg", jpeg)})
    assert response.status_code == 200, response.text


@examples(150)
@given(parser_properties.chunked_forms())
def test_form_is_parsed_equally_in_any_chunks(example: Any) -> None:
    """However a valid form is split into chunks, its images have the same names, file names and bytes."""
    parser_properties.check_chunked_form(example)


@examples(300)
@given(parser_properties.malformed_forms())
def test_malformed_form_is_parsed_or_rejected(example: Any) -> None:
    """A damaged form, or other data, returns images or raises a client error."""
    parser_properties.check_malformed_form(example)


@examples(100)
@given(strategies.tensor_requests(MODEL))
def test_tensor_request_returns_its_images(request_example: strategies.TensorRequest) -> None:
    """A valid request of the Open Inference Protocol, JSON or binary, returns the declared images."""
    parser_properties.check_tensor_request(request_example, MODEL)


@examples(400)
@given(parser_properties.malformed_tensor_requests(MODEL))
def test_malformed_tensor_request_is_parsed_or_rejected(example: Any) -> None:
    """Damaged JSON, wrong lengths and invalid tensors return crops or raise a client error."""
    parser_properties.check_malformed_tensor_request(example, MODEL)
