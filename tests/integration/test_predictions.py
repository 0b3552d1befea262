"""What is predicted, as a running service counts it, and the baseline that is recorded from it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from resnet_service.cli import main
from resnet_service.errors import BaselineError
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

KEY = "metrics-key-0123456789"


def record(url: str, output: Path, *flags: str, key: str = KEY) -> Result:
    arguments = ["baseline", "--url", url, "--output", str(output), *flags]
    return CliRunner().invoke(main, arguments, env={"RESNET_SERVICE_API_KEY": key})


def predict(server: Running, jpeg: bytes, count: int) -> str:
    """Classify an image `count` times in one request, and return its best class."""
    response = server.client.post("/predict/batch", files=[("file", jpeg)] * count)
    assert response.status_code == 200
    label: str = response.json()["results"][0]["predictions"][0]["label"]
    return label


def test_recorded_baseline_appears_in_the_metrics_of_the_next_start(tmp_path: Path, jpeg: bytes) -> None:
    """Also in those of HTTP workers, which count the predictions."""
    file = tmp_path / "baseline.json"
    settings = Settings(model="cifar10", api_keys=f"{KEY} metrics", public_scopes="predict")
    with serving(settings) as server:
        empty = record(server.url, file)
        best = predict(server, jpeg, 5)
        result = record(server.url, file)
        wrong_key = record(server.url, file, key="unknown-key-0123456789")
    assert (empty.exit_code, "has not classified an image" in empty.output) == (1, True)
    assert (wrong_key.exit_code, "unknown API key" in wrong_key.output) == (1, True)
    assert result.exit_code == 0, result.output
    assert f"{best} 100.0%" in result.output
    assert "Fewer than 1,000 images" in result.output
    content = json.loads(file.read_text())
    assert content["models"]["cifar10"]["shares"] == {best: 1.0}

    settings = Settings(model="cifar10", prediction_baseline=file, prediction_classes=1)
    with serving(settings) as server:
        assert server.metric("inference_baseline_share", **{"class": best}) == 1
        assert server.metric("inference_baseline_share", **{"class": "_other"}) == 0
        assert server.metric("inference_predictions_total", **{"class": best}) == 0
        predict(server, jpeg, 3)
        assert server.metric("inference_predictions_total", **{"class": best}) == 3
        assert server.metric("inference_prediction_probability_count", model="cifar10") == 3


def test_images_that_fail_are_not_predictions(server: Running, jpeg: bytes) -> None:
    before = server.metric("inference_predictions_total")
    response = server.client.post("/predict/batch", files=[("file", jpeg), ("file", b"nothing")])
    assert response.status_code == 200
    assert server.metric("inference_predictions_total") == before + 1


@pytest.mark.parametrize(
    ("name", "image_format"), [("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("other", None)]
)
def test_sizes_of_images_are_counted_by_format(server: Running, name: str, image_format: str | None) -> None:
    data = b"nothing" if image_format is None else encode(make_image(20, 20), image_format)
    before, bytes_before = (
        server.metric(f"inference_image_bytes_{part}", format=name) for part in ("count", "sum")
    )
    server.client.post("/predict", files={"file": data})
    assert server.metric("inference_image_bytes_count", format=name) == before + 1
    assert server.metric("inference_image_bytes_sum", format=name) == bytes_before + len(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_shorter_side_of_decoded_images_is_counted(server: Running, image_format: str) -> None:
    """Decoded in a thread or in the sandbox; an image that cannot be decoded has none."""
    parts = ("count", "sum")
    before = [server.metric(f"inference_image_short_side_pixels_{part}") for part in parts]
    for data in (encode(make_image(70, 50), image_format), b"nothing"):
        server.client.post("/predict", files={"file": data})
    after = [server.metric(f"inference_image_short_side_pixels_{part}") for part in parts]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 50]


def test_invalid_baseline_ends_the_start(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_text("{}")
    with pytest.raises(BaselineError, match=r"baseline\.json is invalid: recorded_at"):
        build_app_state(Settings(model="cifar10", prediction_baseline=file))


def test_url_that_does_not_respond_is_named(tmp_path: Path) -> None:
    result = record("http://127.0.0.1:9", tmp_path / "baseline.json")
    assert (result.exit_code, "http://127.0.0.1:9 does not respond" in result.output) == (1, True)
