"""`resnet-service bench`, `bench report` and `compare` with the model cifar10."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resnet_service.benchmark import end_to_end, model_benchmark, report
from resnet_service.benchmark.results import Variant, load_results
from resnet_service.cli import main
from resnet_service.errors import BenchmarkError, DeviceOutOfMemoryError
from resnet_service.images import Crop
from resnet_service.models import load_model
from resnet_service.runtimes import Runtime, TopKResult
from tests.support import REPOSITORY
from tests.support.images import encode, make_image

QUICK = ("--model", "cifar10", "--batch-sizes", "1,2", "--iterations", "2")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


class SmallDevice:
    """A runtime that runs out of memory with more than four images."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.name, self.device, self.precision = runtime.name, runtime.device, runtime.precision
        self.embedding_size = runtime.embedding_size
        self.memory = runtime.memory

    def run(self, crops: Sequence[Crop], k: int, *, with_embeddings: bool = False) -> TopKResult:
        if len(crops) > 4:
            raise DeviceOutOfMemoryError("the device is out of memory")
        return self._runtime.run(crops, k, with_embeddings=with_embeddings)


def test_bench_measures_each_combination(tmp_path: Path) -> None:
    """Results have a row for each variant and batch size, are saved with the hardware, and are printed."""
    output = tmp_path / "here.json"
    result = run(
        *("bench", *QUICK, "--runtime", "torch", "--precision", "fp32,bf16"),
        *("--memory-format", "channels_last,contiguous", "--output", str(output)),
    )
    assert result.exit_code == 0, result.output
    for words in ("torch fp32", "torch bf16 contiguous", "speed-up"):
        assert words in result.stdout
    saved = json.loads(output.read_text())
    assert saved["hardware"]["cores"] >= 1
    rows = saved["model"]
    assert len({tuple(row["variant"].items()) for row in rows}) == 4
    assert [row["batch_size"] for row in rows] == [1, 2] * 4
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch_size"] * 1e3 / row["mean_ms"])
        assert row["p50_ms"] <= row["p99_ms"]


def test_bench_quantizes_the_model_for_int8() -> None:
    pytest.importorskip("nncf", reason="needs the extra quantize")
    result = run("bench", *QUICK, "--device", "cpu", "--precision", "int8", "--json")
    assert result.exit_code == 0, result.output
    assert {row["variant"]["precision"] for row in json.loads(result.stdout)["model"]} == {"int8"}


def test_bench_skips_unsupported_combinations() -> None:
    """The reason is printed and the status is 1, but the other combinations are measured."""
    result = run("bench", *QUICK, "--device", "cpu", "--precision", "fp16,fp32", "--json")
    assert result.exit_code == 1
    assert "fp16 is not supported on the CPU" in result.stderr
    assert {row["variant"]["precision"] for row in json.loads(result.stdout)["model"]} == {"fp32"}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--batch-sizes", "1,x"], 2, "'x' is not"),
        (["--precision", "fp31"], 2, "fp31"),
        (["--batch-size", "8"], 2, "has no effect without"),
        (["--output", "no/such/folder/here.json"], 2, "does not exist"),
        (["--device", "cuda:99"], 1, "cuda"),
        (["--model", "resnet5000"], 1, "did you mean"),
    ],
    ids=str,
)
def test_invalid_arguments_of_bench_are_one_message(arguments: list[str], status: int, message: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == status, result.output
    assert message in result.stderr


def test_end_to_end_benchmark_measures_preprocessing_separately() -> None:
    """It has the rate from JPEG to classes, and the rates of the decoding threads without a model."""
    arguments = ("bench", "--model", "cifar10", "--end-to-end", "40", "--batch-size", "16", "--workers", "2")
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["end_to_end"]
    assert row["images"] == 40
    assert row["images_per_second"] == pytest.approx(40 / row["seconds"])
    assert min(row["preprocessing_per_second"], row["preprocessing_with_one_worker"]) > 0


def test_end_to_end_benchmark_prints_a_table() -> None:
    result = run("bench", "--model", "cifar10", "--end-to-end", "8", "--batch-size", "4")
    assert result.exit_code == 0, result.output
    assert "preprocessing" in result.stdout


def test_batch_that_does_not_fit_the_device_is_not_replaced_by_a_smaller_one() -> None:
    """The end-to-end benchmark fails, and the benchmark of batch sizes stops with a message."""
    model = load_model("cifar10")
    runtime, variant = model_benchmark.create_variant_runtime(model, Variant("cpu", "torch", "fp32"))
    device = SmallDevice(runtime)
    with pytest.raises(BenchmarkError, match="would measure another batch size"):
        end_to_end.benchmark_end_to_end(model, device, variant, images=8, batch_size=8, workers=1)
    messages: list[str] = []
    rows = model_benchmark.benchmark_model(model, device, variant, (8, 2), 1, messages.append)
    assert [row.batch_size for row in rows] == [2]
    assert messages == [f"{variant}: the device is out of memory with 8 images"]


def test_report_compares_the_results_of_machines(tmp_path: Path) -> None:
    """Two results become one table and one plot for the model."""
    pytest.importorskip("matplotlib", reason="needs the extra train")
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert run("bench", *QUICK, "--precision", "fp32", "--output", str(here)).exit_code == 0
    other: dict[str, Any] = json.loads(here.read_text())
    other["hardware"]["processor"] = "Another"
    for row in other["model"]:
        row["images_per_second"] *= 2
    there.write_text(json.dumps(other))
    result = run("bench", "report", str(here), str(there), "--output", str(tmp_path / "report"))
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Another" in text
    assert text.count("**") == 2 * 2  # the faster machine for each batch size
    assert (tmp_path / "report" / "cifar10.png").read_bytes().startswith(b"\x89PNG")


def test_committed_results_can_be_loaded() -> None:
    """The results that the notebook shows have the current format."""
    runs = [load_results(path) for path in (REPOSITORY / "notebooks/results").glob("*.json")]
    assert "| resnet50 |" in report.markdown_table(runs)


@pytest.mark.parametrize("content", ["{}", "not JSON", "[1]"])
def test_file_without_results_is_an_error(tmp_path: Path, content: str) -> None:
    """The message is one line without the text of a validator."""
    path = tmp_path / "notes.jpg"
    path.write_text(content)
    result = run("bench", "report", str(path), "--output", str(tmp_path / "report"))
    assert result.exit_code == 1
    message = "does not hold results of this version of resnet-service bench --output FILE"
    assert result.stderr == f"Error: {path} {message}\n"


@pytest.fixture
def folder(tmp_path: Path, photo: bytes) -> Path:
    """Return a folder with two images in folders named after classes of CIFAR-10, and one other image."""
    folder = tmp_path / "images"
    for name in ("cat", "frog"):
        (folder / name).mkdir(parents=True)
    (folder / "cat" / "1.jpg").write_bytes(photo)
    for name in ("frog/1.png", "truck.png"):
        (folder / name).write_bytes(encode(make_image(), "PNG"))
    return folder


def test_compare_prints_agreement_and_accuracy_of_each_model(tmp_path: Path, folder: Path) -> None:
    """A model agrees with its copy; accuracy covers the images in folders with the name of a class."""
    pytest.importorskip("matplotlib", reason="needs the extra train")
    plot = tmp_path / "plot.png"
    copy = shutil.copy(REPOSITORY / "service/resnet_service/models/bundled/cifar10.safetensors", tmp_path)
    result = run("compare", str(folder), "--model", f"cifar10,{copy}", "--json", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["labeled"] == second["labeled"] == 2
    assert first["accuracy"] == second["accuracy"] >= 0.5  # the cat is recognized
    assert second["agreement"] == 1.0
    assert first["parameters"] > 1_000_000
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "cifar10,resnet5000"], "did you mean"),
        (["--model", "cifar10", "--precision", "int8"], "cifar10 is not quantized"),
        (["--model", "cifar10", "--precision", "fp16", "--device", "cpu"], "fp16 is not supported"),
    ],
    ids=["model", "quantized", "precision"],
)
def test_compare_checks_all_models_before_it_measures_one(
    folder: Path, flags: list[str], message: str
) -> None:
    """No row is printed, and no image is classified."""
    result = run("compare", str(folder), *flags)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "image/s" not in result.stderr  # the progress bar
    assert result.stdout == ""


def test_compare_names_unreadable_images(folder: Path) -> None:
    """The other images are compared, and the status is 1."""
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = run("compare", str(folder), "--model", "cifar10")
    assert result.exit_code == 1
    assert "broken.jpg" in result.stderr
    assert "agreement" in result.stdout


def test_compare_without_images_is_an_error(tmp_path: Path) -> None:
    result = run("compare", str(tmp_path), "--model", "cifar10")
    assert result.exit_code == 1
    assert "contains no images" in result.stderr
