"""`resnet-service classify`: what may be called images, what is answered, and what becomes of bad ones."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.errors import DeviceOutOfMemoryError
from resnet_service.images import Crop
from resnet_service.inference import (
    ClassificationResult,
    Classifier,
    ImageInput,
    classify_images,
    decode_all,
    demo,
    labels_from_path,
)
from resnet_service.models import Model, load_model
from resnet_service.runtimes import DeviceMemory, Runtime, TopKResult
from resnet_service.runtimes.selection import create_runtimes
from tests.support.file_server import FileServer
from tests.support.images import encode, make_image


def classify(*arguments: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["classify", "--model", "bundled", *arguments], input=given)


def answers(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images, one of them in a folder below, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    (folder / "one.jpg").write_bytes(encode(make_image(seed=1)))
    (folder / "below" / "two.PNG").write_bytes(encode(make_image(seed=2), "PNG"))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_dog_is_a_dog(real_images: Path) -> None:
    """A photograph's best class comes first, with its probability, for people and for programs."""
    dog = str(real_images / "dog.jpg")
    shown = classify(dog)
    assert shown.exit_code == 0, shown.output
    assert "dog.jpg" in shown.stdout
    assert shown.stdout.splitlines()[1].split()[:2] == ["1", "dog"]
    [answer] = answers(classify(dog, "--json", "--top-k", "2"))
    labels = [ranked["label"] for ranked in answer["predictions"]]  # type: ignore[attr-defined]
    assert labels[0] == "dog"
    assert len(labels) == 2


def test_without_arguments_the_images_that_come_along() -> None:
    """Three drawn images, of which the bundled model says what they show."""
    result = classify("--json", "--top-k", "1")
    assert result.exit_code == 0, result.output
    best = {str(line["image"]).split()[0]: line["predictions"][0]["label"] for line in answers(result)}  # type: ignore[index]
    assert best == {"airplane": "airplane", "automobile": "automobile", "ship": "ship"}


def test_folders_patterns_files_and_pipes(photos: Path) -> None:
    """Folders are searched to the bottom, for images; patterns and pipes are read; the order is kept."""
    arguments = [str(photos), f"{photos}/**/*.PNG", str(photos / "one.jpg"), "-"]
    result = classify(*arguments, "--json", given=encode(make_image(seed=3)))
    assert result.exit_code == 0, result.output
    below, one = str(photos / "below" / "two.PNG"), str(photos / "one.jpg")
    assert [line["image"] for line in answers(result)] == [below, one, below, one, "standard input"]


def test_urls(file_server: FileServer) -> None:
    """An image is fetched; one that is not there is an error of its own."""
    (file_server.folder / "one.jpg").write_bytes(encode(make_image()))
    result = classify(f"{file_server.url}/one.jpg", f"{file_server.url}/two.jpg", "--json")
    assert result.exit_code == 1
    good, bad = answers(result)
    assert "predictions" in good
    assert "404" in str(bad["error"])


def test_the_known_images_are_downloaded(
    file_server: FileServer, real_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--download-demo fetches each of its images, only when asked for; one that is gone is skipped."""
    (file_server.folder / "dog.jpg").write_bytes((real_images / "dog.jpg").read_bytes())
    monkeypatch.setattr(demo, "PHOTOGRAPHS", (f"{file_server.url}/dog.jpg", f"{file_server.url}/gone.jpg"))
    result = classify("--download-demo", "--json")
    assert result.exit_code == 1
    dog, gone = answers(result)
    assert dog["predictions"][0]["label"] == "dog"  # type: ignore[index]
    assert "404" in str(gone["error"])
    assert sorted(file_server.requests) == ["/dog.jpg", "/gone.jpg"]  # they are fetched side by side


def test_bad_images_are_named_and_skipped(photos: Path) -> None:
    """Text, half an image, nothing, a missing file, an empty folder: the rest goes on, the status is 1."""
    (photos / "empty.jpg").touch()
    (photos / "half.jpg").write_bytes(encode(make_image())[:300])
    (photos / "bare").mkdir()
    names = ["notes.txt", "empty.jpg", "half.jpg", "missing.jpg", "bare", "*.tiff", "one.jpg"]
    result = classify(*(str(photos / name) for name in names), "--json")
    assert result.exit_code == 1
    lines = answers(result)
    assert ["error" in line for line in lines] == [True] * 6 + [False]
    assert "6 of 7 images could not be classified" in result.stderr
    shown = classify(str(photos / "missing.jpg"), str(photos / "one.jpg"))
    assert shown.exit_code == 1
    assert "No such file" in shown.stderr
    assert "one.jpg" in shown.stdout


def test_a_mistake_is_no_traceback() -> None:
    """A model or a device that there is not is a message; an option that there is not, status 2."""
    for arguments, status, words in (
        (["--device", "cuda:99"], 1, "cuda"),
        (["--device", "toaster"], 1, "no device"),
        (["--model", "resnet5000"], 1, "did you mean"),
        (["--top-k", "0"], 2, "top-k"),
        (["--nonsense"], 2, "nonsense"),
    ):
        result = classify(*arguments)
        assert result.exit_code == status, result.output
        assert words in result.stderr
        assert isinstance(result.exception, SystemExit)


class Counting:
    """A real runtime that notes the sizes of its batches, and has room for `room` images."""

    def __init__(self, runtime: Runtime, room: int = 1000) -> None:
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self._runtime, self._room = runtime, room
        self.sizes: list[int] = []

    def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
        if len(crops) > self._room:
            raise DeviceOutOfMemoryError("the device is out of memory")
        self.sizes.append(len(crops))
        return self._runtime.run(crops, k)

    def memory(self) -> DeviceMemory | None:
        return None


@pytest.fixture(scope="module")
def bundled() -> tuple[Model, Runtime]:
    """The bundled model in fp32, whose answers do not depend on the batch."""
    model = load_model("bundled")
    import torch

    [runtime] = create_runtimes(model, [torch.device("cpu")], name="torch", precision="fp32")
    return model, runtime


def sources(count: int) -> list[ImageInput]:
    images = [encode(make_image(seed=number)) for number in range(count)]
    return [ImageInput(str(number), image.__bytes__) for number, image in enumerate(images)]


def run(
    bundled: tuple[Model, Runtime], some: Sequence[ImageInput], batch_size: int, room: int = 1000
) -> tuple[list[ClassificationResult], list[int], list[str]]:
    model, runtime = bundled
    counting, said = Counting(runtime, room), list[str]()
    outcomes = classify_images(
        some, model, counting, top_k=3, batch_size=batch_size, workers=2, on_message=said.append
    )
    return list(outcomes), counting.sizes, said


def test_batches_are_real_and_answer_like_one_by_one(bundled: tuple[Model, Runtime]) -> None:
    """Ten images in batches of four are three forward passes, with the answers of ten."""
    together, sizes, _ = run(bundled, sources(10), 4)
    alone, ones, _ = run(bundled, sources(10), 1)
    assert (sizes, ones) == ([4, 4, 2], [1] * 10)
    for one, other in zip(together, alone, strict=True):
        assert [ranked.label for ranked in one.ranking] == [ranked.label for ranked in other.ranking]
        for ranked, expected in zip(one.ranking, other.ranking, strict=True):
            assert ranked.probability == pytest.approx(expected.probability, abs=1e-3)


def test_out_of_memory_halves_the_batch_and_says_so(bundled: tuple[Model, Runtime]) -> None:
    """Where three fit, batches of eight become two, and none is lost; where none fits, each says so."""
    outcomes, sizes, said = run(bundled, sources(17), 8, room=3)
    assert [outcome.name for outcome in outcomes] == [str(number) for number in range(17)]
    assert all(outcome.ranking for outcome in outcomes)
    assert set(sizes) <= {1, 2}
    assert "going on with 4" in said[0]
    assert "going on with 2" in said[1]
    assert len(said) == 2
    outcomes, _, _ = run(bundled, sources(2), 2, room=0)
    assert all("memory" in str(outcome.error) for outcome in outcomes)


def test_a_batch_size_that_fits_is_kept(bundled: tuple[Model, Runtime]) -> None:
    """Images that come in several lots, as an actor's do, are not halved again and again."""
    model, runtime = bundled
    counting, said = Counting(runtime, room=4), list[str]()
    classifier = Classifier(model, counting, 1, 8, said.append)
    for _ in range(3):
        lot = decode_all(sources(8), model.preprocessing, workers=1, ahead=8)
        assert len([outcome for outcome in classifier.run_all(lot) if outcome.ranking]) == 8
    assert counting.sizes == [4] * 6
    assert len(said) == 1


def test_memory_does_not_grow_with_the_number_of_images(bundled: tuple[Model, Runtime]) -> None:
    """No more images are read than a few batches ahead of those that are answered."""
    read = 0

    def counted() -> Iterator[ImageInput]:
        def image() -> bytes:
            nonlocal read
            read += 1
            return encode(make_image())

        while True:
            yield ImageInput("endless", image)

    model, runtime = bundled
    endless = classify_images(counted(), model, runtime, top_k=1, batch_size=4, workers=2)
    for _ in range(20):
        next(endless)
    assert read <= 20 + 4 * 4
    del endless


def test_help_is_quick() -> None:
    """Nothing heavy is imported before it is needed."""
    heavy = {"torch", "numpy", "PIL", "rich", "pydantic", "tqdm"}
    script = f"import sys, resnet_service.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("photos/dog/1.jpg", {"dog"}),
        ("photos/Tabby Cat/1.jpg", {"tabby_cat"}),
        ("photos/dog_12.jpg", {"dog"}),
        ("photos/tabby-cat (3).png", {"tabby_cat"}),
        ("photos/hotdog.jpg", set()),
        ("photos/1.jpg", set()),
        ("dog/cat_1.jpg", {"dog"}),
        ("n02099601/1.jpg", set()),
    ],
)
def test_classes_in_names(name: str, labels: set[str]) -> None:
    """Folder before file, case and separators aside, whole names; WordNet ids need ImageNet's classes."""
    known = ("cat", "dog", "tabby_cat")
    assert {known[index] for index in labels_from_path(name, known)} == labels


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("n02102040/x.JPEG", {"English springer"}),
        ("imagenet/n03888257_1.JPEG", {"parachute"}),
        ("golden retriever 2.jpg", {"golden retriever"}),
        ("crane/1.jpg", {"crane"}),
    ],
)
def test_imagenet_classes_in_names(name: str, labels: set[str]) -> None:
    """ImageNet's classes by label or WordNet id."""
    from resnet_service.models import catalog

    known = catalog.get_spec("resnet50").labels
    assert {known[index] for index in labels_from_path(name, known)} == labels
