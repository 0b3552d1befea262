"""Small files that once failed do not end a run over many: batch inference and training."""

from pathlib import Path

import pytest

from resnet_service.models import load_model
from tests.support.batch_inference import read_rows, run_job
from tests.support.faults import require_faults
from tests.support.images import encode, make_image
from tests.support.training import train


def test_files_that_once_failed_do_not_end_batch_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a row, with the class of its rule or with an error; a sound file beside them has its class."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from resnet_service.batch_inference.cluster import ray_cluster

    cases = require_faults()
    monkeypatch.setenv("RAY_worker_niceness", "0")
    photos, results = tmp_path / "photos", tmp_path / "results"
    photos.mkdir()
    for fault in cases:
        (photos / fault.name).write_bytes(fault.data)
    (photos / "sound.png").write_bytes(encode(make_image(), "PNG"))
    with ray_cluster():
        run_job(photos, results, load_model("cifar10"))
    rows = {Path(row["path"]).name: row for row in read_rows(results)}
    assert set(rows) == {"sound.png", *(fault.name for fault in cases)}
    assert rows["sound.png"]["error"] is None
    for fault in cases:
        row = rows[fault.name]
        if row["error"] is None:
            assert 200 in fault.statuses, fault.name
            assert fault.top1 in (None, row["label"]), fault.name
        else:
            assert fault.statuses != {200}, (fault.name, row["error"])


def test_files_that_once_failed_do_not_end_training(tmp_path: Path) -> None:
    """Training uses those that can be decoded, and names the others."""
    cases = require_faults()
    data = tmp_path / "data"
    for label in ("dark", "light"):
        (data / label).mkdir(parents=True)
        for number in range(20):
            image = make_image(40, 36, seed=number)
            (data / label / f"{number}.png").write_bytes(encode(image, "PNG"))
    for fault in cases:
        (data / "dark" / fault.name).write_bytes(fault.data)
    result = train(data, tmp_path / "run", "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "model.safetensors").is_file()
    must_fail = [fault.name for fault in cases if 200 not in fault.statuses]
    assert must_fail
    for name in must_fail:
        assert name in result.output
