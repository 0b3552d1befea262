"""The documentation cannot drift: what it shows is compared with the code, or made from it.

`python -m tests.unit.test_docs` writes the tables in docs/ anew.
"""

import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric

from resnet_service import cli, errors
from resnet_service.metrics import Metrics
from resnet_service.server.exception_handlers import PROBLEM_TYPES, to_problem
from resnet_service.settings import ENVIRONMENT_ONLY, Settings
from resnet_service.training.recipes import FINE_TUNING, FROM_SCRATCH, RECIPES
from resnet_service.training.trainer import TrainingConfig
from tests.support import REPOSITORY
from tests.support.server import Running

SERVING, TRAINING = REPOSITORY / "docs/serving.md", REPOSITORY / "docs/training.md"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


def settings_table() -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "" if name in ENVIRONMENT_ONLY else f"`--{name.replace('_', '-')}`<br>"
        default = "" if field.default is None else f"`{str(field.default).lower()}`"
        lines.append(f"| {flag}`RESNET_SERVICE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def errors_table() -> str:
    lines = ["| status | kind | when |", "|---|---|---|"]
    for kind, status in sorted(
        ((kind, type_.status) for kind, type_ in PROBLEM_TYPES.items()), key=lambda pair: pair[1]
    ):
        arguments: dict[type[errors.ServiceError], tuple[object, ...]] = {
            errors.OverloadedError: ("queue_full", 0),
            errors.TooManyRequests: (0,),
        }
        problem = to_problem(kind("", *arguments.get(kind, ())))
        first = (kind.__doc__ or "").splitlines()[0]
        lines.append(f"| {status} | `{problem.type.rsplit(':', 1)[1]}` | {first} |")
    return "\n".join(lines)


def own_metrics() -> list[Metric]:
    return [metric for metric in Metrics().registry.collect() if metric.name.startswith("inference_")]


def metrics_table() -> str:
    lines = ["| metric | |", "|---|---|"]
    for metric in own_metrics():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.documentation} |")
    return "\n".join(lines)


def recipes_table() -> str:
    columns = {**RECIPES, "another from scratch": FROM_SCRATCH, "`--pretrained`, `--weights`": FINE_TUNING}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for field in fields(TrainingConfig):
        if field.name != "seed":
            values = (str(getattr(recipe, field.name)).lower() for recipe in columns.values())
            lines.append(f"| `--{field.name.replace('_', '-')}` | {' | '.join(values)} |")
    return "\n".join(lines)


TABLES = {
    SERVING: {"settings": settings_table, "errors": errors_table, "metrics": metrics_table},
    TRAINING: {"recipes": recipes_table},
}


def rewritten(page: Path) -> str:
    """Return a page with its tables made anew."""
    text = page.read_text(encoding="utf-8")
    for name, table in TABLES[page].items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table()}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


def test_the_tests_that_a_page_names_exist() -> None:
    """What a page says is shown by a test is shown by one."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").glob("test_*.py")}
    defined = {
        name
        for text in files.values()
        for name in re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE)
    }
    pages = (page.read_text(encoding="utf-8") for page in PAGES)
    named = {name for text in pages for name in re.findall(r"\btest_\w+(?:\.py)?", text)}
    assert len(named) > 50
    assert named <= defined | set(files)


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.name)
def test_the_tables_are_in_step(page: Path) -> None:
    """Settings, errors, metrics and recipes are documented as the code has them."""
    assert page.read_text(encoding="utf-8") == rewritten(page), (
        "run: .venv/bin/python -m tests.unit.test_docs"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    """Outside of code there is no name in capitals that stands for a figure to come."""
    text = re.sub(
        r"```.*?```|`[^`]*`|^    .*$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert not re.findall(r"\b[A-Z]{3,}(?:_[A-Z0-9]+)+\b|\bTODO\b|\bXXX\b", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    """Each make target and each resnet-service command and flag that is shown exists."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE):
        command = ["make", "--dry-run", "--always-make", target]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    for line in re.findall(r"resnet-service ([a-z]+ --.*)", text):
        name, *words = line.split()
        command_ = cli.main.commands[name]
        parameters = command_.get_params(command_.make_context(name, [], resilient_parsing=True))
        known = {option for parameter in parameters for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def test_the_readmes_answer_is_the_services(server: Running, jpeg: bytes) -> None:
    """The answer shown in the README has the shape of a real one."""
    shown = json.loads(re.findall(r"```json\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)[0])
    answer = server.client.post("/predict?top_k=2", files={"file": jpeg}).json()
    assert _shape(shown) == _shape(answer)


def _shape(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    return [_shape(inner) for inner in value] if isinstance(value, list) else type(value)


def test_the_documented_endpoints_are_the_services(server: Running) -> None:
    """Each endpoint in the table is there, and none is missing from it."""
    page = SERVING.read_text(encoding="utf-8")
    shown = set(re.findall(r"(?:^\| |<br>)`(?:GET|POST) (/[^`]*)`", page, re.MULTILINE))
    assert shown - {"/docs"} == set(httpx.get(f"{server.url}/openapi.json").json()["paths"])


if __name__ == "__main__":
    for changed in TABLES:
        changed.write_text(rewritten(changed), encoding="utf-8")
