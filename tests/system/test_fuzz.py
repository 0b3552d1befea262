"""The fuzzers, each for a few seconds."""

from pathlib import Path

import pytest

from load_tests.fuzz.api import fuzz_api
from load_tests.fuzz.fuzzers import fuzz_decoder, fuzz_parsers
from load_tests.service import run_service, serve_command

pytestmark = pytest.mark.exclusive


def test_decoder_survives_mutated_images(tmp_path: Path) -> None:
    """Atheris mutates images of the corpus, and the decoder raises declared errors only."""
    result = fuzz_decoder(300, tmp_path, seed=1, max_corpus=300)
    assert result.runs >= 600
    assert result.crashes == []
    assert result.growth_mb < 100


def test_parsers_have_their_properties_for_random_bodies() -> None:
    """Hypothesis draws valid and malformed forms and tensor requests."""
    result = fuzz_parsers(100, seed=1)
    assert result.failures == []
    assert min(result.inputs.values()) >= 25


def test_api_responds_as_its_openapi_document_says(tmp_path: Path) -> None:
    """Responses to valid and invalid requests are documented, and none is a 5xx but for a short timeout."""
    with run_service(serve_command("cifar10"), tmp_path / "service.log") as (url, process):
        result = fuzz_api(url, 100, process.pid, seed=1, rounds=2)
    assert result.failures == []
    assert {status for status in result.statuses if status >= 500} <= {504}
    assert {200, 404, 422} <= set(result.statuses)
    assert result.failed_probes == 0
