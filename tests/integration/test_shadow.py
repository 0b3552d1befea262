"""A shadow version: it runs the images of another version, and clients notice nothing of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from resnet_service.errors import InferenceError, ModelLoadError
from resnet_service.images import Preprocessing
from resnet_service.models.checkpoint import Checkpoint, save_checkpoint
from resnet_service.models.networks import NETWORKS
from resnet_service.settings import Settings
from tests.support.images import encode, make_image
from tests.support.server import Running, serving

SHADOW = {"model": "pets", "version": "2"}


def write_network(path: Path, label_prefix: str = "", scale: float = 1.0) -> None:
    """Write a LeNet for four classes, with a prefix before its labels and weights multiplied by `scale`."""
    torch.manual_seed(0)
    state = {name: tensor * scale for name, tensor in NETWORKS["lenet"](4).state_dict().items()}
    preprocessing = Preprocessing(32, 32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    labels = tuple(f"{label_prefix}{number}" for number in range(4))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(Checkpoint("lenet", labels, preprocessing, state), path)


@contextmanager
def serving_shadow(
    folder: Path,
    percent: float = 100,
    settings: Settings | None = None,
    label_prefix: str = "",
    scale: float = 1.0,
) -> Iterator[Running]:
    """Serve two versions; `percent` of the images also run on the second, which the last arguments change."""
    write_network(folder / "pets/1/pets.safetensors")
    write_network(folder / "pets/2/pets.safetensors", label_prefix, scale)
    traffic = f"version: 1\nshadow: {{version: 2, percent: {percent}}}\n"
    (folder / "pets" / "traffic.yaml").write_text(traffic)
    settings = settings or Settings()
    with serving(settings.model_copy(update={"model": "auto", "model_repository": folder})) as running:
        yield running


def predict(server: Running, number: int) -> str:
    """Classify one of several images, and return the version that answered."""
    image = encode(make_image(64, 64, seed=number))
    response = server.client.post("/predict", files={"file": image})
    assert response.status_code == 200
    version: str = response.json()["version"]
    return version


def compared(server: Running, *outcomes: str) -> float:
    """Return how many images the shadow has finished with one of the outcomes."""
    return sum(
        server.metric("inference_shadow_images_total", outcome=outcome, **SHADOW) for outcome in outcomes
    )


def test_equal_versions_agree_on_every_image(tmp_path: Path) -> None:
    """Each image is decoded once, and compared once; the client gets the result of the first version."""
    with serving_shadow(tmp_path) as server:
        assert {predict(server, number) for number in range(20)} == {"1"}
        server.wait_for(lambda: compared(server, "agree") == 20)
        assert compared(server, "disagree", "failed", "dropped") == 0
        below = server.metric("inference_shadow_probability_difference_bucket", le="0.001", **SHADOW)
        assert below == 20
        assert server.metric("inference_stage_seconds_count", stage="decode") == 20
        assert server.metric("inference_images_total", version="2", outcome="ok") == 0


def test_share_of_the_images_runs_on_the_shadow(tmp_path: Path) -> None:
    """With 50 percent, of 100 images neither none nor all (that has a probability of 2 ** -99)."""
    with serving_shadow(tmp_path, percent=50) as server:
        for number in range(100):
            predict(server, number)
        assert 0 < compared(server, "agree", "disagree") < 100


def test_other_results_disagree_by_the_difference_of_the_probability(tmp_path: Path) -> None:
    """A network whose weights are 0 gives each of the four classes a probability of 0.25."""
    with serving_shadow(tmp_path, scale=0.0) as server:
        image = encode(make_image(64, 64))
        [best, *_] = server.client.post("/predict", files={"file": image}).json()["predictions"]
        server.wait_for(lambda: compared(server, "agree", "disagree") == 1)
        difference = server.metric("inference_shadow_probability_difference_sum", **SHADOW)
        assert difference == pytest.approx(best["probability"] - 0.25, abs=1e-4)


def test_results_are_compared_by_label(tmp_path: Path) -> None:
    """A version whose classes have other names does not agree, although their numbers are the same."""
    with serving_shadow(tmp_path, label_prefix="new ") as server:
        for number in range(5):
            predict(server, number)
        server.wait_for(lambda: compared(server, "disagree") == 5)
        assert compared(server, "agree") == 0


def test_clients_do_not_wait_for_a_shadow_that_hangs(tmp_path: Path) -> None:
    """What does not fit into its limit is dropped and counted; the rest is compared when it goes on."""
    with serving_shadow(tmp_path, settings=Settings(max_batch=1)) as server:
        _, shadow = server.runtimes
        with shadow.held():
            assert {predict(server, number) for number in range(10)} == {"1"}
            dropped = compared(server, "dropped")
            assert dropped == 10 - 1 - 4  # one runs, four batches of one image wait
        server.wait_for(lambda: compared(server, "agree") == 5)
        assert compared(server, "dropped", "agree") == 10


def test_clients_do_not_see_that_the_shadow_fails(tmp_path: Path) -> None:
    """Its failures are counted; no client gets one, and they are no failed images."""
    with serving_shadow(tmp_path) as server:
        _, shadow = server.runtimes
        shadow.error = InferenceError("broken")
        assert {predict(server, number) for number in range(3)} == {"1"}
        server.wait_for(lambda: compared(server, "failed") == 3)
        shadow.error = None
        predict(server, 0)
        server.wait_for(lambda: compared(server, "agree") == 1)
        assert server.metric("inference_images_total", outcome="failed") == 0


def test_shadow_must_take_the_same_crops(tmp_path: Path) -> None:
    """Neither costs a second decode, so that a version with another size is rejected when it is loaded."""
    (tmp_path / "pets/2").mkdir(parents=True)
    (tmp_path / "pets/2/model.yaml").write_text("model: cifar10\npreprocessing: {resize: 36}\n")
    (tmp_path / "pets/1").mkdir()
    (tmp_path / "pets/1/model.yaml").write_text("model: cifar10\n")
    (tmp_path / "pets/traffic.yaml").write_text("shadow: {version: 2, percent: 1}\n")
    with (
        pytest.raises(ModelLoadError, match="version 2 of 'pets' cannot be the shadow of version 1"),
        serving(Settings(model="auto", model_repository=tmp_path)),
    ):
        pass
