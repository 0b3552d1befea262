"""`resnet-service doctor` and `inspect`: check the machine, describe a model."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from resnet_service.cli.common import (
    exit_on_service_error,
    json_option,
    model_option,
    resolve_auto,
)
from resnet_service.cli.tables import print_table, terminal_width

if TYPE_CHECKING:
    from resnet_service.diagnostics.checks import Check
    from resnet_service.diagnostics.model_summary import ModelSummary
    from resnet_service.models import ModelSource

_STATUS_MARKS: Final = {"ok": ("✓", "green"), "note": ("·", "yellow"), "problem": ("✗", "red")}


@click.command(short_help="Check the installation and the devices.")
@json_option("Print one JSON object per check and line.")
def doctor(as_json: bool) -> None:
    """Check the installation and the devices, and print a hint for each problem.

    The exit status is 1 if there is a problem.

    \b
    Examples:
      resnet-service doctor
      resnet-service doctor --json | jq -r 'select(.state == "problem") | .hint'
    """
    from resnet_service.diagnostics.checks import run_checks

    problems = 0
    for check in run_checks():
        problems += check.state == "problem"
        if as_json:
            click.echo(json.dumps(asdict(check)))
            continue
        _print_check(check)
    if not as_json:
        count = f"{problems} problem{'' if problems == 1 else 's'} found"
        click.echo(f"\n{count}" if problems else "\nNo problems found.")
    sys.exit(1 if problems else 0)


def _print_check(check: "Check") -> None:
    mark, color = _STATUS_MARKS[check.state]
    text = click.wrap_text(f"{check.name}: {check.detail}", terminal_width() - 2, subsequent_indent="    ")
    name = click.style(check.name, bold=True)
    click.echo(f"{click.style(mark, fg=color)} {name}{text.removeprefix(check.name)}")
    if check.hint:
        click.echo(click.wrap_text(check.hint, terminal_width(), "    ", "    "))


@click.command(short_help="Describe a model: parameters, layers, size, input and labels.")
@model_option
@json_option("Print one JSON object.")
def inspect(model: "ModelSource", as_json: bool) -> None:
    """Describe a model: parameters, layers, operations, size, input, outputs and preprocessing.

    Published weights of torchvision are not downloaded for this.

    \b
    Examples:
      resnet-service inspect
      resnet-service inspect --model resnet50 --json
    """
    from resnet_service.diagnostics.model_summary import summarize_model

    with exit_on_service_error():
        summary = summarize_model(resolve_auto(model))
    if as_json:
        click.echo(json.dumps(asdict(summary) | {"memory_bytes": summary.memory_bytes}))
    else:
        _print_summary(summary)


def _print_summary(summary: "ModelSummary") -> None:
    preprocessing = summary.preprocessing
    side = preprocessing.crop
    labels = ", ".join(summary.labels[:4]) + (", ..." if len(summary.labels) > 4 else "")
    parameters, operations = summary.parameters, summary.operations
    facts = {
        "weights": summary.source,
        "parameters": "unknown (quantized model)" if parameters is None else f"{parameters:,}",
        "memory": None if summary.memory_bytes is None else f"{summary.memory_bytes / 1e6:.1f} MB in fp32",
        "file": "not downloaded" if summary.file_bytes is None else f"{summary.file_bytes / 1e6:.1f} MB",
        "operations": f"{operations / 2e9:.2f} G multiply-adds per image ({operations / 1e9:.2f} GFLOPs)",
        "input": f"[N, 3, {side}, {side}]",
        "outputs": f"[N, {len(summary.labels)}]: {labels}",
        "preprocessing": f"resize the short side to {preprocessing.resize} ({preprocessing.interpolation}), "
        f"center crop {side}, mean {_format_channels(preprocessing.mean)}, "
        f"std {_format_channels(preprocessing.std)}",
    }
    click.echo(f"{click.style(summary.name, bold=True)}\n")
    formatter = click.HelpFormatter()
    formatter.write_dl([(name, value) for name, value in facts.items() if value])
    click.echo(formatter.getvalue(), nl=False)
    if summary.layers:
        click.echo()
        print_table(("layer", "count"), [(name, f"{count:,}") for name, count in summary.layers.items()])


def _format_channels(values: tuple[float, float, float]) -> str:
    return "/".join(f"{value:.3f}" for value in values)
