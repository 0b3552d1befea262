"""Lay runs from several machines side by side: a Markdown table and plots."""

from collections.abc import Sequence
from pathlib import Path

from resnet_service.benchmark.results import BenchmarkRun
from resnet_service.training import require_plots


def markdown_table(runs: Sequence[BenchmarkRun]) -> str:
    """Return the rows of all runs as Markdown, the fastest variant of a model and batch size in bold."""
    return "\n\n".join(part for part in (_model_table(runs), _end_to_end_table(runs)) if part) + "\n"


def write_report(runs: Sequence[BenchmarkRun], folder: Path) -> list[Path]:
    """Write report.md and, for models measured alone, a plot for each into `folder`; return the paths.

    Raises OSError, and MissingDependencyError where plots cannot be drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = dict.fromkeys(row.model for run in runs for row in run.model)
    if models:
        require_plots()
        from resnet_service.benchmark import plots
    drawn = [folder / f"{model}.png" for model in models]
    for model, path in zip(models, drawn, strict=True):
        plots.over_batch_sizes(runs, model, path)
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in drawn)
    report = folder / "report.md"
    report.write_text(f"{_machines(runs)}\n{markdown_table(runs)}{shown}", encoding="utf-8")
    return [report, *drawn]


def _machines(runs: Sequence[BenchmarkRun]) -> str:
    lines = ["| processor | GPU | memory | system | PyTorch | measured |", "|---|---|---|---|---|---|"]
    for run in runs:
        on = run.hardware
        memory = "" if on.memory_gib is None else f"{on.memory_gib:.0f} GiB"
        lines.append(
            f"| {on.processor}, {on.cores} cores | {on.gpu or ''} | {memory} | {on.os}, {on.architecture} "
            f"| {on.torch} | {run.taken[:10]} |"
        )
    return "\n".join(lines) + "\n"


def _model_table(runs: Sequence[BenchmarkRun]) -> str:
    rows = [(run, row) for run in runs for row in run.model]
    if not rows:
        return ""
    best: dict[tuple[str, int], float] = {}
    for _, row in rows:
        key = row.model, row.batch_size
        best[key] = max(best.get(key, 0.0), row.images_per_second)
    lines = [
        "| model | machine | variant | batch | ms a batch, p50 | p99 | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, row in sorted(rows, key=lambda pair: (pair[1].model, pair[1].batch_size)):
        rate = f"{row.images_per_second:,.1f}"
        shown = f"**{rate}**" if row.images_per_second == best[row.model, row.batch_size] else rate
        lines.append(
            f"| {row.model} | {run.machine(row.variant)} | {row.variant} | {row.batch_size} "
            f"| {row.p50_ms:.1f} | {row.p99_ms:.1f} | {shown} |"
        )
    return "\n".join(lines)


def _end_to_end_table(runs: Sequence[BenchmarkRun]) -> str:
    rows = [(run, row) for run in runs for row in run.end_to_end]
    if not rows:
        return ""
    lines = [
        "| model | machine | variant | batch | images | seconds | images/s | preprocessing | by one |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, row in rows:
        lines.append(
            f"| {row.model} | {run.machine(row.variant)} | {row.variant} | {row.batch_size} "
            f"| {row.images:,} | {row.seconds:.1f} | {row.images_per_second:,.1f} "
            f"| {row.preprocessing_per_second:,.0f}/s by {row.workers} "
            f"| {row.preprocessing_with_one_worker:,.0f}/s |"
        )
    return "\n".join(lines)
