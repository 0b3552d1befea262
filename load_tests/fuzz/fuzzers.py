"""Fuzz the decoder (atheris) and the parsers of request bodies (hypothesis)."""

import logging
import math
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from load_tests.fuzz import parser_properties, strategies
from load_tests.fuzz.corpus import corpus
from load_tests.health_prober import resident_mb
from load_tests.service import LoadTestError
from resnet_service.models import load_model

Value = TypeVar("Value")

_MAX_BYTES: Final = 65_536
_RSS_LIMIT_MB: Final = 2048
_TIMEOUT_S: Final = 25
_EXAMPLES_PER_ROUND: Final = 1000
"""Hypothesis keeps all examples of a run in memory; short runs keep that from looking like a leak."""
_MEMORY_REPORT: Final = re.compile(r"^rss_mb (\S+) (\S+)$", re.MULTILINE)
_EXECUTED_RUNS: Final = re.compile(r"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class DecoderFuzzResult:
    """The number of inputs, and the files of those that crashed the decoder; memory in 10^6 bytes."""

    runs: int
    seconds: float
    crashes: list[Path]
    warm_mb: float
    end_mb: float

    @property
    def growth_mb(self) -> float:
        """The growth of memory after the warm-up."""
        return self.end_mb - self.warm_mb


@dataclass(frozen=True)
class ParserFuzzResult:
    """The number of inputs by kind, and the failures as hypothesis reports them; memory in 10^6 bytes."""

    inputs: dict[str, int]
    seconds: float
    failures: list[str]
    warm_mb: float
    end_mb: float

    @property
    def total(self) -> int:
        """The number of inputs."""
        return sum(self.inputs.values())

    @property
    def growth_mb(self) -> float:
        """The growth of memory after the first round."""
        return self.end_mb - self.warm_mb


def fuzz_decoder(
    runs: int, folder: Path, *, seed: int = 0, max_corpus: int | None = None
) -> DecoderFuzzResult:
    """Fuzz the decoder in a separate process: with the corpus, then with `runs` mutated inputs.

    `max_corpus` limits the corpus to about that many inputs, evenly spaced. An input that causes an
    undeclared error, or takes longer than 25 s or more than 2 GB, ends the run and is stored in `folder`, as
    is the log. With `seed` 0 each run is different. Raises LoadTestError if the fuzzer itself fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "decoder.log"
    before = set(folder.iterdir())
    started = time.perf_counter()
    inputs = [data for _, data in corpus() if len(data) <= _MAX_BYTES]
    inputs = inputs[:: max(1, len(inputs) // (max_corpus or len(inputs)))]
    with tempfile.TemporaryDirectory() as seeds:
        for number, data in enumerate(inputs):
            (Path(seeds) / f"{number:05}").write_bytes(data)
        command = [
            *(sys.executable, "-m", "load_tests.fuzz.decoding", seeds),
            *(f"-runs={runs + len(inputs)}", f"-max_len={_MAX_BYTES}", f"-rss_limit_mb={_RSS_LIMIT_MB}"),
            *(f"-timeout={_TIMEOUT_S}", f"-artifact_prefix={folder}/", f"-seed={seed}"),
            "-print_final_stats=1",
        ]
        with log.open("wb") as output:
            process = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(encoding="utf-8", errors="replace")
    crashes = sorted(set(folder.iterdir()) - before - {log})
    memory_reports = _MEMORY_REPORT.findall(text)
    executed = _EXECUTED_RUNS.search(text)
    if (process.returncode != 0 and not crashes) or not memory_reports or executed is None:
        raise LoadTestError(f"the fuzzer of the decoder ended with {process.returncode}; see {log}")
    warm_mb, end_mb = map(float, memory_reports[-1])
    return DecoderFuzzResult(int(executed[1]), time.perf_counter() - started, crashes, warm_mb, end_mb)


def fuzz_parsers(examples: int, *, seed: int = 0) -> ParserFuzzResult:
    """Check the parser properties with `examples` bodies: valid and malformed forms and tensor requests.

    With `seed` 0 each run is different.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it logs every malformed body
    model = load_model("cifar10").description
    properties: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
        "forms in chunks": (parser_properties.chunked_forms(), parser_properties.check_chunked_form),
        "malformed forms": (parser_properties.malformed_forms(), parser_properties.check_malformed_form),
        "tensor requests": (
            strategies.tensor_requests(model),
            lambda request: parser_properties.check_tensor_request(request, model),
        ),
        "malformed tensor requests": (
            parser_properties.malformed_tensor_requests(model),
            lambda request: parser_properties.check_malformed_tensor_request(request, model),
        ),
    }
    inputs: Counter[str] = Counter()
    failures = []
    started = time.perf_counter()
    share = math.ceil(examples / len(properties))
    warm_mb = 0.0
    for done in range(0, share, _EXAMPLES_PER_ROUND):
        for name, (strategy, check) in list(properties.items()):

            def count(name: str = name) -> None:
                inputs[name] += 1

            round_examples = min(_EXAMPLES_PER_ROUND, share - done)
            failure = _run_property(strategy, check, round_examples, count, seed and seed + done)
            if failure:
                failures.append(f"{name}: {failure}")
                del properties[name]
        warm_mb = warm_mb or resident_mb()
    return ParserFuzzResult(dict(inputs), time.perf_counter() - started, failures, warm_mb, resident_mb())


def _run_property(
    strategy: st.SearchStrategy[Value],
    check: Callable[[Value], None],
    examples: int,
    count: Callable[[], None],
    seed: int,
) -> str:
    """Return the failure with the smallest input that causes it, or an empty string."""

    @strategies.seeded(seed)
    @settings(strategies.FUZZING, max_examples=examples)
    @given(strategy)
    def run_once(value: Value) -> None:
        count()
        check(value)

    try:
        run_once()
    except Exception as error:  # noqa: BLE001 # any error of the parsers is a finding
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"{error!r}\n{notes}"
    return ""
