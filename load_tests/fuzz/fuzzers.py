"""The long runs: bytes for the decoder, bodies for the parsers, requests for the whole API."""

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

from load_tests.fuzz import parser_properties as parsing
from load_tests.fuzz import strategies
from load_tests.fuzz.corpus import corpus
from load_tests.health_prober import resident_mb
from resnet_service.models import load_model

Value = TypeVar("Value")

_MAX_BYTES: Final = 65_536
_RSS_LIMIT_MB: Final = 2048
_TIMEOUT_S: Final = 25
_ROUND: Final = 1000
"""Hypothesis remembers all it has tried until the round's end, and would be taken for a leak."""
_REPORT: Final = re.compile(r"^rss_mb (\S+) (\S+)$", re.MULTILINE)
_DONE: Final = re.compile(r"^stat::number_of_executed_units: (\d+)$", re.MULTILINE)


class FuzzerFailed(Exception):
    """The fuzzer did not do its runs, for reasons of its own."""


@dataclass(frozen=True)
class DecodeFuzz:
    """What the decoder bore: how many inputs, and the files of those that it did not."""

    runs: int
    seconds: float
    crashes: list[Path]
    warm_mb: float
    end_mb: float

    @property
    def grown_mb(self) -> float:
        """What stayed in memory after the warm-up."""
        return self.end_mb - self.warm_mb


@dataclass(frozen=True)
class ParseFuzz:
    """What the parsers bore: how many inputs of each kind, and what was wrong, in hypothesis's words."""

    inputs: dict[str, int]
    seconds: float
    failures: list[str]
    warm_mb: float
    end_mb: float

    @property
    def grown_mb(self) -> float:
        """What stayed in memory after the first round."""
        return self.end_mb - self.warm_mb


def decode_fuzz(runs: int, folder: Path, seed: int = 0, seeds: int | None = None) -> DecodeFuzz:
    """Fuzz decoding with atheris, in a process of its own: the corpus first, and then `runs` more.

    Of the corpus only about `seeds` inputs, evenly, where that is not None.

    An input that ends in another error than the promised ones, takes longer than 25 s or more than 2 GB is
    kept in `folder`, as is the log; the run ends there. With `seed` 0 each run is another. Raises
    FuzzerFailed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "decode.log"
    before = set(folder.iterdir())
    started = time.perf_counter()
    inputs = [data for _, data in corpus() if len(data) <= _MAX_BYTES]
    inputs = inputs[:: max(1, len(inputs) // (seeds or len(inputs)))]
    with tempfile.TemporaryDirectory() as first:
        for number, data in enumerate(inputs):
            (Path(first) / f"{number:05}").write_bytes(data)
        command = [
            *(sys.executable, "-m", "load_tests.fuzz.decoding", first),
            *(f"-runs={runs + len(inputs)}", f"-max_len={_MAX_BYTES}", f"-rss_limit_mb={_RSS_LIMIT_MB}"),
            *(
                f"-timeout={_TIMEOUT_S}",
                f"-artifact_prefix={folder}/",
                f"-seed={seed}",
                "-print_final_stats=1",
            ),
        ]
        with log.open("wb") as written:
            ended = subprocess.run(command, stdout=written, stderr=subprocess.STDOUT, check=False)
    text = log.read_text(encoding="utf-8", errors="replace")
    crashes = sorted(set(folder.iterdir()) - before - {log})
    reports = _REPORT.findall(text)
    done = _DONE.search(text)
    if (ended.returncode != 0 and not crashes) or not reports or done is None:
        raise FuzzerFailed(f"the fuzzer of the decoder ended with {ended.returncode}; see {log}")
    warm_mb, end_mb = reports[-1]
    return DecodeFuzz(int(done[1]), time.perf_counter() - started, crashes, float(warm_mb), float(end_mb))


def parse_fuzz(examples: int, seed: int = 0) -> ParseFuzz:
    """Take `examples` forms and tensors apart, in equal parts valid and not.

    With `seed` 0 each run is another.
    """
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it says what is malformed, each time
    model = load_model("bundled")
    kinds: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
        "forms in chunks": (parsing.cut_forms(), parsing.a_form_is_read_alike_in_any_chunks),
        "bad forms": (parsing.bad_forms(), parsing.a_bad_form_is_rejected_or_read),
        "tensors": (
            strategies.tensors(model),
            lambda sent: parsing.a_request_has_its_images(sent, model),
        ),
        "bad tensors": (
            parsing.bad_requests(model),
            lambda sent: parsing.a_bad_request_is_rejected_or_read(sent, model),
        ),
    }
    inputs: Counter[str] = Counter()
    failures = []
    started = time.perf_counter()
    share = math.ceil(examples / len(kinds))
    warm_mb = 0.0
    for done in range(0, share, _ROUND):
        for name, (strategy, check) in list(kinds.items()):

            def count(name: str = name) -> None:
                inputs[name] += 1

            failure = _try(strategy, check, min(_ROUND, share - done), count, seed and seed + done)
            if failure:
                failures.append(f"{name}: {failure}")
                del kinds[name]
        warm_mb = warm_mb or resident_mb()
    return ParseFuzz(dict(inputs), time.perf_counter() - started, failures, warm_mb, resident_mb())


def _try(
    strategy: st.SearchStrategy[Value],
    check: Callable[[Value], None],
    examples: int,
    count: Callable[[], None],
    seed: int,
) -> str:
    """Return what failed, with the smallest input that does, or nothing."""

    @strategies.seeded(seed)
    @settings(strategies.FUZZING, max_examples=examples)
    @given(strategy)
    def once(value: Value) -> None:
        count()
        check(value)

    try:
        once()
    except Exception as error:  # noqa: BLE001
        notes = "\n".join(getattr(error, "__notes__", []))
        return f"{error!r}\n{notes}"
    return ""
