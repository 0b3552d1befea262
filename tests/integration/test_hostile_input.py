"""Bad input: images that are none, damaged, or bombs, and requests that no client would make."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from load_tests.fuzz import parser_properties as parsing
from load_tests.fuzz import strategies
from load_tests.fuzz.corpus import corpus
from resnet_service.errors import InvalidImageError, PayloadTooLarge, UnsupportedMediaType
from resnet_service.images import Preprocessing, decode_image
from resnet_service.models import load_model
from tests.support.server import Running

SMALL = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MODEL = load_model("bundled")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "heic", "exe", "")
BATCH = 64


@pytest.fixture(scope="module")
def inputs() -> dict[str, bytes]:
    """The whole corpus, by name."""
    return dict(corpus())


def few(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try so many examples, the same each time, and leave nothing behind."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def test_the_corpus_is_the_same_each_time(inputs: dict[str, bytes]) -> None:
    """Thousands of inputs, each with a name of its own, and a failure's name leads to it again."""
    again = list(corpus())
    assert len(again) == len(inputs) > 5000
    assert dict(again) == inputs


def test_every_input_is_an_image_or_a_typed_error(inputs: dict[str, bytes]) -> None:
    """Whatever the bytes, decoding gives a crop or says in one of three ways why there is none."""
    unexpected = {}
    for name, data in inputs.items():
        try:
            assert decode_image(data, SMALL).shape == (32, 32, 3)
        except (InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            pass
        except Exception as error:  # noqa: BLE001
            unexpected[name] = repr(error)
    assert not unexpected


def test_sound_images_are_read(inputs: dict[str, bytes]) -> None:
    """Of the corpus' whole images only those of 32-bit samples are rejected: it is not bad all over."""
    rejected = set()
    for name, data in inputs.items():
        if name.startswith("whole/"):
            try:
                decode_image(data, SMALL)
            except InvalidImageError:
                rejected.add(name)
    assert rejected == {"whole/tiff/I", "whole/tiff/F"}


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see the most memory held")
def test_a_bomb_takes_no_memory(inputs: dict[str, bytes]) -> None:
    """What would expand to gigabytes is rejected, or left unexpanded, within 100 MB."""
    process = Path("/proc/self")
    for name, data in inputs.items():
        if not name.startswith("bomb/"):
            continue
        (process / "clear_refs").write_text("5", encoding="ascii")  # forget the most held so far
        before_kb = memory_kb(process, "VmRSS")
        with suppress(InvalidImageError, PayloadTooLarge, UnsupportedMediaType):
            decode_image(data, SMALL, max_pixels=2_000_000)
        assert memory_kb(process, "VmHWM") - before_kb < 100_000, name


def memory_kb(process: Path, name: str) -> int:
    lines = (process / "status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_a_service_bears_the_corpus(server: Running, inputs: dict[str, bytes], jpeg: bytes) -> None:
    """Under wrong names and among others each input is answered by itself, never as the service's fault."""
    chance = random.Random(0)
    names = list(inputs)
    chance.shuffle(names)
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        parts = [("file", (f"{n}.{chance.choice(EXTENSIONS)}", inputs[name])) for n, name in enumerate(batch)]
        answer = server.client.post("/predict/batch?top_k=1", files=parts)
        assert answer.status_code == 200, (batch, answer.text)
        results = answer.json()["results"]
        assert [result["filename"] for result in results] == [filename for _, (filename, _) in parts]
        for name, result in zip(batch, results, strict=True):
            assert "predictions" in result or result["error"]["status"] in (413, 415, 422), (name, result)
    good = server.client.post("/predict", files={"file": ("good.jpg", jpeg)})
    assert good.status_code == 200, good.text


@few(150)
@given(parsing.cut_forms())
def test_a_form_is_read_alike_in_any_chunks(sent: Any) -> None:
    """However the network cuts a valid form, its images are the same: names, file names and bytes."""
    parsing.a_form_is_read_alike_in_any_chunks(sent)


@few(300)
@given(parsing.bad_forms())
def test_a_bad_form_is_rejected_or_read(sent: Any) -> None:
    """A damaged form, or what is none, gives images or an error that is the sender's."""
    parsing.a_bad_form_is_rejected_or_read(sent)


@few(100)
@given(strategies.tensors(MODEL))
def test_a_request_has_its_images(sent: strategies.Tensors) -> None:
    """A valid request of the Open Inference Protocol, in JSON or binary, gives as many crops as it says."""
    parsing.a_request_has_its_images(sent, MODEL)


@few(400)
@given(parsing.bad_requests(MODEL))
def test_a_bad_request_is_rejected_or_read(sent: Any) -> None:
    """Damaged JSON, lengths that lie and tensors that are none give an error that is the sender's."""
    parsing.a_bad_request_is_rejected_or_read(sent, MODEL)
