"""The fuzzers, each for a few seconds."""

from pathlib import Path

from load_tests.fuzz.api import api_fuzz
from load_tests.fuzz.fuzzers import decode_fuzz, parse_fuzz
from load_tests.service import serve, started


def test_decoding_is_fuzzed(tmp_path: Path) -> None:
    """Atheris changes images of the corpus, and none of them crashes the decoder."""
    found = decode_fuzz(300, tmp_path, seed=1, seeds=300)
    assert found.runs >= 600
    assert found.crashes == []
    assert found.grown_mb < 100


def test_parsing_is_fuzzed() -> None:
    """Hypothesis draws other requests each time, and the parsers keep their promises for all of them."""
    found = parse_fuzz(100, seed=1)
    assert found.failures == []
    assert min(found.inputs.values()) >= 25


def test_the_api_is_fuzzed(tmp_path: Path) -> None:
    """Schemathesis finds every answer to be as the OpenAPI document says, and none a 500."""
    with started(serve("bundled"), tmp_path / "service.log") as (url, process):
        found = api_fuzz(url, 200, process.pid, seed=1)
    assert found.failures == []
    assert not [status for status in found.statuses if status >= 500]
    assert {200, 404, 422} <= set(found.statuses)
    assert found.failed_health == 0
