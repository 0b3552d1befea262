"""`resnet-service inspect`: what a model is made of."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from resnet_service.cli.errors import exit_on_service_error

if TYPE_CHECKING:
    from resnet_service.diagnostics.model_summary import ModelSummary


@click.command()
@click.argument("model")
@click.option("--weights", help="Weights for a torchvision classifier, as for serve.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, weights: str | None, as_json: bool) -> None:
    """Show what a MODEL is made of: parameters, layers, work, sizes, input, outputs and preprocessing.

    A torchvision classifier's published weights are not downloaded for it.

    \b
    Examples:
      resnet-service inspect resnet50
      resnet-service inspect bundled --json
    """
    from resnet_service.diagnostics.model_summary import summarize_model

    with exit_on_service_error():
        found = summarize_model(model, weights)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"memory_bytes": found.memory_bytes}))
    else:
        _print(found)


def _print(found: "ModelSummary") -> None:
    from rich.table import Table

    from resnet_service.cli.tables import show

    unknown = "not known: it is a quantized graph"
    preprocessing = found.preprocessing
    side = preprocessing.crop
    operations = found.operations
    rows = {
        "weights": found.source,
        "parameters": unknown if found.parameters is None else f"{found.parameters:,}",
        "in memory": "" if found.memory_bytes is None else f"{found.memory_bytes / 1e6:.1f} MB in fp32",
        "on disk": "not downloaded" if found.file_bytes is None else f"{found.file_bytes / 1e6:.1f} MB",
        "work": ""
        if operations is None
        else f"{operations / 2e9:.2f} G multiply-adds an image ({operations / 1e9:.2f} GFLOPs)",
        "input": f"[N, 3, {side}, {side}]",
        "outputs": f"[N, {len(found.labels)}]: {', '.join(found.labels[:4])}"
        f"{', ...' if len(found.labels) > 4 else ''}",
        "preprocessing": f"short side to {preprocessing.resize} ({preprocessing.interpolation}), center crop "
        f"{side}, mean {_triple(preprocessing.mean)}, std {_triple(preprocessing.std)}",
    }
    table = Table(title=found.name, show_header=False, title_style="bold")
    for name, value in rows.items():
        if value:
            table.add_row(name, value)
    show(table)
    if found.layers:
        layers = Table("layer", "number", title="layers that hold no others")
        layers.columns[1].justify = "right"
        for name, count in found.layers.items():
            layers.add_row(name, f"{count:,}")
        show(layers)


def _triple(values: tuple[float, float, float]) -> str:
    return "/".join(f"{value:.3f}" for value in values)
