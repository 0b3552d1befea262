"""Small files that once failed follow their rules over HTTP and in `classify`, alone and together."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resnet_service.cli import main
from tests.support import FAULTS
from tests.support.faults import Fault, faults, require_faults
from tests.support.http import files
from tests.support.server import Running


def assert_follows_rule(fault: Fault, status: int, result: dict[str, Any]) -> None:
    """Check the status and the class of a result, or the detail of an error."""
    assert status in fault.statuses, (fault.name, status, result)
    if status == 200 and fault.top1 is not None:
        best = result["predictions"][0]
        assert best["label"] == fault.top1, fault.name
        assert best["probability"] == pytest.approx(fault.probability, abs=0.03), fault.name
    if status != 200 and fault.named is not None:
        assert fault.named in result["detail"]


@pytest.mark.skipif(not FAULTS.is_dir(), reason="needs the files that once failed")
@pytest.mark.parametrize("fault", faults(), ids=lambda fault: fault.name)
def test_file_that_once_failed_follows_its_rule(server: Running, fault: Fault, photo: bytes) -> None:
    """Alone, and the service classifies a photograph after it."""
    response = server.client.post("/predict", files=files(fault.data))
    assert_follows_rule(fault, response.status_code, response.json())
    assert server.client.post("/predict", files=files(photo)).status_code == 200


@pytest.mark.parametrize("is_reversed", [False, True])
def test_files_that_once_failed_follow_their_rules_in_a_batch(server: Running, is_reversed: bool) -> None:
    """In either order; an image that cannot be decoded does not affect the others of its request."""
    cases = require_faults()[:: -1 if is_reversed else 1]
    response = server.client.post("/predict/batch", files=files(*(fault.data for fault in cases)))
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert len(results) == len(cases)
    for fault, result in zip(cases, results, strict=True):
        error = result.get("error")
        assert_follows_rule(fault, error["status"] if error else 200, error or result)


def test_files_that_once_failed_do_not_end_classify(tmp_path: Path) -> None:
    """Each file of the folder gets its classes or its error."""
    cases = require_faults()
    for fault in cases:
        (tmp_path / fault.name).write_bytes(fault.data)
    result = CliRunner().invoke(main, ["classify", "--model", "cifar10", "--json", str(tmp_path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    lines = {Path(line["image"]).name: line for line in map(json.loads, result.stdout.splitlines())}
    assert set(lines) == {fault.name for fault in cases}
    for fault in cases:
        line = lines[fault.name]
        if "predictions" in line:
            assert_follows_rule(fault, 200, line)
        else:
            assert fault.statuses != {200}, (fault.name, line)


@pytest.mark.parametrize("encoding", ["gzip", "br"])
def test_compressed_body_is_415_that_names_its_encoding(server: Running, jpeg: bytes, encoding: str) -> None:
    """The body is not read; /v2 rejects it as well."""
    headers = {"content-encoding": encoding}
    response = server.client.post("/predict", files=files(jpeg), headers=headers)
    assert response.status_code == 415
    assert f"Content-Encoding '{encoding}'" in response.json()["detail"]
    model = server.client.get("/info").json()["model"]
    response = server.client.post(f"/v2/models/{model}/infer", json={}, headers=headers)
    assert response.status_code == 415
