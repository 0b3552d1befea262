"""The command line as a whole: help texts, common options, parameter types, tables and import time."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from resnet_service.cli import main
from resnet_service.cli.common import CommaSeparated, FiniteFloat, exit_on_service_error
from resnet_service.cli.tables import print_table
from resnet_service.errors import ServiceError
from tests.support import REPOSITORY

_NO_MODEL = {"baseline", "train", "ui", "doctor", "report"}
_NO_JSON = {"baseline", "serve", "ui"}


def leaf_commands(group: click.Group = main) -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its name, `bench report` as "report"."""
    for name, command in group.commands.items():
        yield name, command
        if isinstance(command, click.Group):
            yield from leaf_commands(command)


def flags(command: click.Command) -> set[str]:
    context = click.Context(command)
    return {flag for parameter in command.get_params(context) for flag in parameter.opts}


COMMANDS = pytest.mark.parametrize(
    ("name", "command"), [pytest.param(*pair, id=pair[0]) for pair in leaf_commands()]
)


def help_text(*arguments: str) -> str:
    result = CliRunner().invoke(main, [*arguments, "--help"], terminal_width=80)
    assert result.exit_code == 0
    return result.stdout


def test_choices_are_accepted_in_any_case() -> None:
    """The value is the documented word, for one choice and for a list."""
    arguments = ["x.jpg", "--precision", "FP32", "--runtime", "OpenVINO"]
    context = main.commands["classify"].make_context("classify", arguments)
    assert (context.params["precision"], context.params["runtime"]) == ("fp32", "openvino")
    assert CommaSeparated(("auto", "fp32")).convert("FP32, Auto", None, None) == ("fp32", "auto")


def test_help_lists_the_commands_in_groups() -> None:
    """All commands appear under four headings with complete one-line summaries."""
    text = help_text()
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", "Serve and measure:", "Local inference:", "Training:", "Tools:"]
    for command in main.commands.values():
        assert f"  {command.name}" in text
        assert str(command.short_help) in text


@pytest.mark.parametrize("arguments", [[name] for name in main.commands] + [["bench", "report"]], ids=str)
def test_help_fits_80_columns_without_empty_defaults(arguments: list[str]) -> None:
    """Lines have at most 80 characters, and options without a default show none."""
    text = help_text(*arguments)
    assert max(map(len, text.splitlines())) <= 80
    assert "default: None" not in text
    assert "default: none" not in text


def test_exit_statuses_of_serve_are_those_of_the_docs() -> None:
    """The help text of `serve` and the table in docs/serving.md list the same statuses."""
    page = (REPOSITORY / "docs/serving.md").read_text(encoding="utf-8")
    table = page.split("Exit status of the process:")[1].split("\n\n")[1]
    help_lines = help_text("serve").split("Exit status:")[1].split("Options:")[0]
    assert re.findall(r"^\| (\d) \|", table, re.MULTILINE) == re.findall(r"\b\d\b", help_lines)


@COMMANDS
def test_options_have_the_same_names_everywhere(name: str, command: click.Command) -> None:
    """--model, --device, --output and --json; only `train` has --network."""
    options = flags(command)
    assert not options & {"--devices", "--out", "--images", "--seed", "--service"}
    assert ("--model" in options) == (name not in _NO_MODEL)
    assert ("--network" in options) == (name == "train")
    assert ("--json" in options) == (name not in _NO_JSON)
    assert ("--output" in options) == ("-o" in options)


@COMMANDS
def test_default_model_is_auto(name: str, command: click.Command) -> None:
    """Commands that use a model share their default."""
    from resnet_service.settings import Settings

    for parameter in command.get_params(click.Context(command)):
        if "--model" in parameter.opts and name != "serve":
            assert parameter.default == "auto"
    assert Settings.model_fields["model"].default == "auto"


def test_import_of_the_command_line_is_quick() -> None:
    """Heavy libraries are imported by the commands that use them, not by --help."""
    heavy = {"torch", "numpy", "PIL", "pydantic", "tqdm", "httpx"}
    script = f"import sys, resnet_service.cli; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("type_", "text", "expected"),
    [
        (CommaSeparated(), "a, b,a", ("a", "b")),
        (CommaSeparated(("fp32", "bf16")), "bf16,fp32", ("bf16", "fp32")),
        (CommaSeparated(minimum=1), "8,1", (8, 1)),
        (CommaSeparated(minimum=0), "0", (0,)),
    ],
)
def test_comma_separated_list(type_: CommaSeparated, text: str, expected: tuple[object, ...]) -> None:
    """Elements keep their order, without spaces and duplicates."""
    assert type_.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("type_", "text", "message"),
    [
        (CommaSeparated(), "a,,b", "empty element"),
        (CommaSeparated(("fp32", "bf16")), "fp31", "'fp31' is not one of fp32, bf16"),
        (CommaSeparated(minimum=1), "1,x", "'x' is not an integer from 1"),
        (CommaSeparated(minimum=1), "0", "'0' is not an integer from 1"),
        (CommaSeparated(minimum=1), "9" * 5000, "9' is not an integer from 1 to"),
        (CommaSeparated(minimum=0), "99999999999999999999", "is not an integer from 0"),
        (FiniteFloat(0), "nan", "is not a finite number"),
        (FiniteFloat(0), "inf", "is not a finite number"),
        (FiniteFloat(0), "-1", "range"),
    ],
)
def test_invalid_values_are_usage_errors(
    type_: CommaSeparated | FiniteFloat, text: str, message: str
) -> None:
    """The message names the invalid element."""
    with pytest.raises(click.BadParameter, match=message):
        type_.convert(text, None, None)


def test_service_error_becomes_message_with_status_1() -> None:
    """exit_on_service_error keeps the text of the error and drops the traceback."""
    with pytest.raises(click.ClickException, match="no such thing") as failure, exit_on_service_error():
        raise ServiceError("no such thing")
    assert failure.value.exit_code == 1


def test_table_wider_than_the_terminal_has_labels_on_their_own_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 40 columns a long label precedes its rows, once, and the figures stay aligned."""
    rows = [("a-very-long-label-of-a-model", "1", "10.0"), ("a-very-long-label-of-a-model", "2", "5.0")]
    monkeypatch.setenv("COLUMNS", "80")
    print_table(("variant", "batch", "images/s"), rows)
    assert capsys.readouterr().out.splitlines()[1] == "a-very-long-label-of-a-model      1      10.0"
    monkeypatch.setenv("COLUMNS", "40")
    print_table(("variant", "batch", "images/s"), rows)
    assert capsys.readouterr().out.splitlines() == [
        "variant  batch  images/s",
        "a-very-long-label-of-a-model",
        "             1      10.0",
        "             2       5.0",
    ]


FILE_OUTPUTS = pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--model", "nonsense", "--output"],
        ["quantize", "--model", "nonsense", "--data", ".", "--output"],
        ["compare", "nowhere", "--model", "nonsense", "--plot"],
    ],
    ids=lambda arguments: arguments[0],
)


@FILE_OUTPUTS
@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("missing/file", 2, "missing does not exist"),
        (".", 2, "is a directory"),
        ("x" * 300, 1, "cannot be written: File name too long"),
    ],
    ids=["missing directory", "directory", "long name"],
)
def test_unusable_output_file_is_reported_before_the_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    output: str,
    status: int,
    message: str,
) -> None:
    """Neither the model nor the images are looked for, although both are missing, too."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*arguments, output])
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["activations", __file__, "--model", "nonsense"],
        ["batch", "nowhere", "--model", "nonsense"],
        ["bench", "report", __file__],
        ["train", "--data", "nowhere", "--network", "nonsense"],
    ],
    ids=["activations", "batch", "report", "train"],
)
def test_unusable_output_directory_is_reported_before_the_work(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, [*arguments, "--output", "/dev/null/results"])
    assert result.exit_code == 1, result.output
    assert result.stderr == "Error: /dev/null/results cannot be written: Not a directory\n"


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("runtimes.quantization", ["quantize", "--model", "nonsense", "--data", ".", "-o", "x"], "quantize"),
        ("runtimes.quantization", ["bench", "--precision", "fp32,int8"], "quantize"),
        ("runtimes.selection", ["bench", "--model", "nonsense", "--runtime", "torch,openvino"], "openvino"),
        ("runtimes.selection", ["classify", "--model", "nonsense", "--runtime", "openvino"], "openvino"),
        ("runtimes.selection", ["compare", "x", "--model", "nonsense", "--runtime", "openvino"], "openvino"),
        ("batch_inference", ["batch", "nowhere", "--model", "nonsense", "-o", "x"], "ray"),
        ("explanations", ["explain", __file__, "--model", "nonsense", "-o", "x"], "explain"),
        ("training", ["activations", __file__, "--model", "nonsense", "-o", "x"], "train"),
        ("training", ["compare", "nowhere", "--model", "nonsense", "--plot", "x"], "train"),
        ("training", ["train", "--data", "nowhere", "--network", "nonsense", "-o", "x"], "train"),
    ],
    ids=str,
)
def test_missing_extra_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str], extra: str
) -> None:
    """It is the first message, although the model and the data are missing, too, and nothing is measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module(f"resnet_service.{module}"), "find_spec", lambda _: None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1, result.output
    assert f"make install EXTRAS={extra}" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []
