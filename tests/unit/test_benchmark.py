"""`resnet-service bench`, `bench report` and `compare`: figures, and machines and models side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resnet_service.benchmark import end_to_end, model_benchmark
from resnet_service.benchmark.results import Variant
from resnet_service.cli import main
from resnet_service.errors import BenchmarkError, DeviceOutOfMemoryError
from resnet_service.images import Crop
from resnet_service.models import load_model, weights_path
from resnet_service.runtimes import TopKResult
from tests.support.images import encode, make_image

QUICK = ("--model", "bundled", "--batch-sizes", "1,2", "--iterations", "2")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_each_combination_is_measured(tmp_path: Path) -> None:
    """A row for each variant and batch size; kept with the machine's fingerprint, and shown as a table."""
    kept = tmp_path / "here.json"
    result = run(
        *("bench", *QUICK, "--runtime", "torch", "--precision", "fp32,bf16"),
        *("--memory-format", "channels_last,contiguous", "--output", str(kept)),
    )
    assert result.exit_code == 0, result.output
    for words in ("torch fp32", "torch bf16 contiguous", "speed-up"):
        assert words in result.stdout
    written = json.loads(kept.read_text())
    assert written["hardware"]["cores"] >= 1
    rows = written["model"]
    assert len({tuple(row["variant"].items()) for row in rows}) == 4
    assert [row["batch_size"] for row in rows] == [1, 2] * 4
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch_size"] * 1e3 / row["mean_ms"])
        assert row["p50_ms"] <= row["p99_ms"]


def test_int8_is_made_for_the_measurement() -> None:
    """A model in floating point is quantized, with what is needed for that, and measured in int8."""
    pytest.importorskip("nncf", reason="needs the extra quantize")
    result = run("bench", *QUICK, "--device", "cpu", "--precision", "int8", "--json")
    assert result.exit_code == 0, result.output
    assert {row["variant"]["precision"] for row in json.loads(result.stdout)["model"]} == {"int8"}


def test_what_cannot_be_combined_is_named_and_the_rest_measured() -> None:
    """fp16 on a CPU is rejected with the reason, the status is 1, and fp32 has its rows."""
    result = run("bench", *QUICK, "--device", "cpu", "--precision", "fp16,fp32", "--json")
    assert result.exit_code == 1
    assert "fp16 is not supported on the CPU" in result.stderr
    assert {row["variant"]["precision"] for row in json.loads(result.stdout)["model"]} == {"fp32"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--batch-sizes", "1,x"], 2, "'x' is not a positive integer"),
        (["--precision", "fp31"], 2, "fp31"),
        (["--batch-size", "8"], 2, "has no effect without"),
        (["--output", "no/such/folder/here.json"], 2, "does not exist"),
        (["--device", "cuda:99"], 1, "cuda"),
        (["--model", "resnet5000"], 1, "did you mean"),
    ],
)
def test_a_mistake_is_no_traceback(arguments: list[str], status: int, words: str) -> None:
    """What was asked wrongly is said in a sentence."""
    result = run("bench", *arguments)
    assert result.exit_code == status, result.output
    assert words in result.stderr


def test_end_to_end_has_the_preprocessing_beside_it() -> None:
    """All of the way for generated images, and what the workers do without a model."""
    arguments = ("--end-to-end", "40", "--batch-size", "16", "--workers", "2", "--json")
    result = run("bench", "--model", "bundled", *arguments)
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["end_to_end"]
    assert row["images"] == 40
    assert row["images_per_second"] == pytest.approx(40 / row["seconds"])
    assert min(row["preprocessing_per_second"], row["preprocessing_with_one_worker"]) > 0
    shown = run("bench", "--model", "bundled", "--end-to-end", "8", "--batch-size", "4")
    assert shown.exit_code == 0, shown.output
    assert "preprocessing" in shown.stdout


def test_a_batch_that_does_not_fit_is_not_measured_as_a_smaller_one() -> None:
    """Where half a batch would fit, its figures are not passed off as the whole one's."""
    model = load_model("bundled")
    runtime, variant = model_benchmark.create_variant_runtime(model, Variant("cpu", "torch", "fp32"))

    class Small:
        name, device, precision = runtime.name, runtime.device, runtime.precision
        memory = runtime.memory

        def run(self, crops: Sequence[Crop], k: int) -> TopKResult:
            if len(crops) > 4:
                raise DeviceOutOfMemoryError("the device is out of memory")
            return runtime.run(crops, k)

    with pytest.raises(BenchmarkError, match="continuing with batches of 4 would measure something else"):
        end_to_end.benchmark_end_to_end(model, Small(), variant, images=8, batch_size=8, workers=1)


def test_machines_side_by_side(tmp_path: Path) -> None:
    """Results of two machines become one table, with a plot for the model."""
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert run("bench", *QUICK, "--precision", "fp32", "--output", str(here)).exit_code == 0
    other: dict[str, Any] = json.loads(here.read_text())
    other["hardware"]["processor"] = "Another"
    for row in other["model"]:
        row["images_per_second"] *= 2
    there.write_text(json.dumps(other))
    result = run("bench", "report", str(here), str(there), "--output", str(tmp_path / "report"))
    assert result.exit_code == 0, result.output
    report = (tmp_path / "report" / "report.md").read_text()
    assert "Another" in report
    assert report.count("**") == 2 * 2  # the faster one of each batch size
    assert (tmp_path / "report" / "bundled.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_that_is_no_result(tmp_path: Path) -> None:
    """Something else than results is named."""
    (tmp_path / "x.json").write_text("{}")
    result = run("bench", "report", str(tmp_path / "x.json"), "--output", str(tmp_path / "report"))
    assert result.exit_code == 1
    assert "x.json is no result" in result.stderr


def test_models_side_by_side(tmp_path: Path, real_images: Path) -> None:
    """A model agrees with itself, is right as often, and is drawn; an unreadable image is named."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "dog.jpg").write_bytes((real_images / "dog.jpg").read_bytes())
    (folder / "frog_1.png").write_bytes(encode(make_image(), "PNG"))
    (folder / "unknown.png").write_bytes(encode(make_image(), "PNG"))
    arguments = ("compare", str(folder), "--model", f"bundled,{weights_path('bundled')}")
    result = run(*arguments, "--json", "--plot", str(tmp_path / "plot.png"))
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["labeled"] == 2
    assert first["accuracy"] in (0.5, 1.0)  # the dog; of the frog, which is only called so, who knows
    assert second["agreement"] == 1.0
    assert first["parameters"] > 1_000_000
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    shown = run(*arguments)
    assert shown.exit_code == 1
    assert "broken.jpg" in shown.stderr
    assert "agreement" in shown.stdout


def test_a_comparison_of_nothing(tmp_path: Path) -> None:
    """A folder without an image is a message."""
    result = run("compare", str(tmp_path), "--model", "bundled")
    assert result.exit_code == 1
    assert "holds no images" in result.stderr
