"""The documentation is compared with the code, and its tables are generated from it.

`python -m tests.unit.test_docs` updates the tables in docs/.
"""

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client import Metric

from resnet_service import __version__, cli, errors
from resnet_service.metric_labels import LABELS
from resnet_service.metrics import Metrics
from resnet_service.server.app import create_app
from resnet_service.server.exception_handlers import PROBLEM_TYPES, to_problem
from resnet_service.server.rpc.status import GRPC_CODES
from resnet_service.server.state import build_app_state
from resnet_service.settings import ENVIRONMENT_ONLY, Settings
from resnet_service.training.recipes import FINE_TUNING, FROM_SCRATCH, RECIPES
from resnet_service.training.trainer import TrainingConfig
from tests.support import REPOSITORY
from tests.support.prometheus import RULES
from tests.support.server import Running, serving

PACKAGE: Final = REPOSITORY / "service/resnet_service"
README: Final = REPOSITORY / "README.md"
CONTRIBUTING: Final = REPOSITORY / "CONTRIBUTING.md"
RELIABILITY: Final = REPOSITORY / "docs/reliability.md"
SERVING: Final = REPOSITORY / "docs/serving.md"
HTTP_REFERENCE: Final = REPOSITORY / "docs/http-reference.md"
TRAINING: Final = REPOSITORY / "docs/training.md"
PAGES: Final = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
_UNWANTED: Final = re.compile(r"\b(nobody|whoever|everybody)\b|refus|\bis no\b|\bpictures?\b", re.IGNORECASE)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _page_id(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def settings_table() -> str:
    lines = ["| setting | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "" if name in ENVIRONMENT_ONLY else f"`--{name.replace('_', '-')}`<br>"
        default = "" if field.default in (None, "") else f"`{str(field.default).lower()}`"
        lines.append(f"| {flag}`RESNET_SERVICE_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(lines)


def errors_table() -> str:
    lines = ["| status | gRPC | kind | when |", "|---|---|---|---|"]
    arguments: dict[type[errors.ServiceError], tuple[object, ...]] = {
        errors.OverloadedError: ("queue_full", 0),
        errors.TooManyRequests: (0,),
    }
    for kind, problem_type in sorted(PROBLEM_TYPES.items(), key=lambda pair: pair[1].status):
        problem = to_problem(kind("", *arguments.get(kind, ())))
        summary = (kind.__doc__ or "").splitlines()[0]
        code = f"`{GRPC_CODES[kind].name}`" if kind in GRPC_CODES else ""
        slug = problem.type.rsplit(":", 1)[1]
        lines.append(f"| {problem_type.status} | {code} | `{slug}` | {summary} |")
    return "\n".join(lines)


def inference_metrics() -> list[Metric]:
    return [metric for metric in Metrics().registry.collect() if metric.name.startswith("inference_")]


def metrics_table() -> str:
    lines = ["| metric | |", "|---|---|"]
    for metric in inference_metrics():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        lines.append(f"| `{name}` | {metric.documentation} |")
    return "\n".join(lines)


def labels_table() -> str:
    rows = [f"| `{label}` | {values} |" for label, values in LABELS.items()]
    return "\n".join(["| label | values |", "|---|---|", *rows])


def recipes_table() -> str:
    columns = {**RECIPES, "other, from scratch": FROM_SCRATCH, "from a model": FINE_TUNING}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for field in fields(TrainingConfig):
        if field.name != "seed":
            values = (str(getattr(recipe, field.name)).lower() for recipe in columns.values())
            lines.append(f"| `--{field.name.replace('_', '-')}` | {' | '.join(values)} |")
    return "\n".join(lines)


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI document of a service."""
    return create_app(build_app_state(Settings(model="cifar10"))).openapi()


def operations() -> dict[str, dict[str, Any]]:
    """Return the operations of the API by method and path, such as `GET /info`."""
    paths = openapi()["paths"].items()
    return {f"{method.upper()} {path}": value for path, item in paths for method, value in item.items()}


def parameters_table() -> str:
    """Return a table of all parameters of queries."""
    parameters = {
        parameter["name"]: parameter
        for operation in operations().values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }
    lines = ["| parameter | |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| `{name}` | {value['description']} |" for name, value in parameters.items())]
    )


def operation_facts(name: str) -> str:
    """Return the scope, parameters and statuses of an operation, and of those with the path of a version."""
    shown = operations()[name]
    parameters = [value["name"] for value in shown.get("parameters", []) if value["in"] == "query"]
    scopes = [scope for security in shown.get("security", []) for scope in security["APIKey"]]
    variants = [other for other in operations() if other != name and _without_version(other) == name]
    statuses = sorted(status for status in shown["responses"] if status.isdigit())
    facts = {"Also": variants, "Scope": scopes or ["none"], "Parameters": parameters, "Status": statuses}
    return " ".join(
        f"{fact}: {', '.join(f'`{v}`' for v in values)}." for fact, values in facts.items() if values
    )


def _without_version(operation: str) -> str:
    """Return the operation on a model that an operation on its version, or on all models, is a variant of."""
    return operation.replace("/versions/{version}", "").replace("/v2/models/stats", "/v2/models/{name}/stats")


TABLES: Final[dict[Path, dict[str, Callable[[], str]]]] = {
    SERVING: {
        "settings": settings_table,
        "errors": errors_table,
        "metrics": metrics_table,
        "labels": labels_table,
    },
    TRAINING: {"recipes": recipes_table},
    HTTP_REFERENCE: {
        "parameters": parameters_table,
        **{
            name: partial(operation_facts, name)
            for name in re.findall(r"^<!-- ([A-Z]+ /.*) -->$", _read(HTTP_REFERENCE), re.MULTILINE)
        },
    },
}


def with_current_tables(page: Path) -> str:
    """Return the text of a page with its tables generated from the code."""
    text = _read(page)
    for name, table in TABLES[page].items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{table()}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    return text


def test_tests_named_in_the_docs_exist() -> None:
    """Every test function and test file that a page names exists."""
    paths = list((REPOSITORY / "tests").rglob("test_*.py"))
    functions = {
        name
        for path in paths
        for name in re.findall(r"^(?:async )?def (test_\w+)", _read(path), re.MULTILINE)
    }
    modules = {name for path in paths for name in (path.name, path.stem)}
    cited = {name for page in PAGES for name in re.findall(r"\btest_\w+(?:\.py)?", _read(page))}
    assert len(cited) > 50
    assert cited <= functions | modules


def test_paths_named_in_the_docs_exist() -> None:
    """Every path of a source or test file that a page names exists."""
    pattern = r"(?<![\w-])((?:service|tests|load_tests|monitoring|deploy)/[\w./-]*\w\.(?:py|md|ya?ml|jpg))\b"
    cited = {path for page in PAGES for path in re.findall(pattern, _read(page))}
    assert {path for path in cited if not (REPOSITORY / path).exists()} == set()


def _table_rows(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the table whose header row is `heading`, without code marks."""
    after = _read(page).split(f"{heading}\n", 1)[1].splitlines()[1:]
    rows = itertools.takewhile(lambda line: line.strip().startswith("|"), after)
    return [[cell.strip(" `") for cell in line.strip().strip("|").split("|")] for line in rows]


def test_contributing_lists_every_module() -> None:
    """The table of modules in CONTRIBUTING.md contains all parts of the package, by layer."""
    rows = _table_rows(CONTRIBUTING, "| layer | module | responsibility | may also import |")
    parts = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {row[1] for row in rows} == parts - {"__init__", "__main__"}
    layers = [int(row[0]) for row in rows]
    assert layers == sorted(layers, reverse=True)


def test_each_row_of_the_chaos_table_names_its_test() -> None:
    """The last column of the table has the names of tests, and nothing else."""
    modules = (REPOSITORY / "tests").rglob("test_*.py")
    tests = {name for path in modules for name in re.findall(r"^def (test_\w+)", _read(path), re.MULTILINE)}
    rows = _table_rows(RELIABILITY, "| fault from outside | what happens | test |")
    cited = [set(re.split(r"\W+", row[2])) for row in rows]
    assert all(names and names <= tests for names in cited)


def test_contributing_lists_every_broad_exception_handler() -> None:
    """The table of `except Exception` in CONTRIBUTING.md names exactly the modules that have one."""
    broad = re.compile(r"^ *except \(?(?:Exception|BaseException)\b", re.MULTILINE)
    modules = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if broad.search(_read(path))}
    assert {row[0] for row in _table_rows(CONTRIBUTING, "  | module | reason |")} == modules


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    """The first section of the changelog is that of the version, unreleased or with a date."""
    [heading] = re.findall(r"^## (.+)$", _read(REPOSITORY / "CHANGELOG.md"), re.MULTILINE)[:1]
    assert re.fullmatch(rf"{re.escape(__version__)} (\(unreleased\)|- \d{{4}}-\d\d-\d\d)", heading)


@pytest.mark.parametrize("page", TABLES, ids=_page_id)
def test_tables_match_the_code(page: Path) -> None:
    """The tables of settings, errors, metrics and recipes match the code."""
    assert _read(page) == with_current_tables(page), "run: .venv/bin/python -m tests.unit.test_docs"


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_links_resolve(page: Path) -> None:
    """Every relative link names an existing file, and its fragment an existing heading."""
    for target in re.findall(r"\]\(([^)]+)\)", _read(page)):
        if target.startswith("http"):
            continue
        name, _, fragment = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", _read(file), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}
            assert fragment in anchors, target


def test_each_alert_has_a_section_of_the_runbook() -> None:
    """The link of each alert leads to a heading with its name, in the order of the rules."""
    links = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in RULES if "alert" in rule}
    headings = re.findall(r"^## (.+)$", _read(REPOSITORY / "docs/runbook.md"), re.MULTILINE)
    assert headings == list(links)
    assert links == {name: f"docs/runbook.md#{name.lower()}" for name in headings}


def test_every_page_is_in_the_index() -> None:
    """docs/README.md links to every other page of docs/."""
    index = REPOSITORY / "docs/README.md"
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", _read(index))}
    assert {path.name for path in index.parent.glob("*.md")} - {index.name} <= linked


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_pages_have_no_placeholders(page: Path) -> None:
    """Text outside of code contains no capitalized placeholder for a result."""
    text = re.sub(r"```.*?```|`[^`]*`|^    .*$", "", _read(page), flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"\b[A-Z]{3,}(?:_[A-Z0-9]+)+\b|\bTODO\b|\bXXX\b", text)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=_page_id)
def test_pages_use_the_standard_words(page: Path) -> None:
    """Pages say image and reject. The changelog also contains the previous names."""
    assert _UNWANTED.findall(_read(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=_page_id)
def test_commands_exist(page: Path) -> None:
    """Every make target and every resnet-service command and flag in a page exists."""
    text = _read(page)
    for target in re.findall(r"^    make ([a-z-]+)", text, re.MULTILINE):
        command_line = ["make", "--dry-run", "--always-make", target]
        subprocess.run(command_line, cwd=REPOSITORY, check=True, capture_output=True)
    for line in re.findall(r"resnet-service ([a-z]+ .*--.*)", text):
        name, *words = line.split()
        command = cli.main.commands[name]
        parameters = command.get_params(command.make_context(name, [], resilient_parsing=True))
        options = {option for parameter in parameters for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in words if re.match(r"--\w", word)} <= options, line


def test_the_readme_shows_the_response_of_the_service() -> None:
    """The response in the README has the form and the best class of the response to its command.

    It is that of a machine without internet access, where efficientnet_lite0 is served.
    """
    text = _read(README)
    shown = json.loads(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    [image] = re.findall(r"curl -F file=@(\S+)", text)
    with serving(Settings(model=shown["model"])) as service:
        response = service.client.post("/predict", files={"file": (REPOSITORY / image).read_bytes()}).json()
    assert _form(shown) == _form(response)
    best = response["predictions"][0]
    assert best["label"] == shown["predictions"][0]["label"] == "Samoyed"
    assert best["probability"] > 0.7


def _form(value: object) -> object:
    """Return the keys and types of a JSON value."""
    if isinstance(value, dict):
        return {key: _form(inner) for key, inner in value.items()}
    return [_form(inner) for inner in value] if isinstance(value, list) else type(value)


def test_the_table_of_endpoints_is_complete(server: Running) -> None:
    """The table contains every endpoint of the service, and only those."""
    paths = set(re.findall(r"(?:^\| |<br>)`(?:GET|POST) (/[^`]*)`", _read(SERVING), re.MULTILINE))
    assert paths - {"/", "/docs"} == set(httpx.get(f"{server.url}/openapi.json").json()["paths"])


def test_the_reference_has_every_operation() -> None:
    """Each operation has a section with its name as heading, or is named as a variant there."""
    headings = re.findall(r"^## ([A-Z]+ /.*)$", _read(HTTP_REFERENCE), re.MULTILINE)
    assert {"parameters", *headings} == set(TABLES[HTTP_REFERENCE])
    assert sorted(headings) == sorted({_without_version(name) for name in operations()})


if __name__ == "__main__":
    for path in TABLES:
        path.write_text(with_current_tables(path), encoding="utf-8")
