"""Compare benchmark runs of several machines: a Markdown report with plots."""

from collections.abc import Sequence
from pathlib import Path

from resnet_service.benchmark.results import BenchmarkRun
from resnet_service.training import require_plots


def markdown_table(runs: Sequence[BenchmarkRun]) -> str:
    """Return the rows of all runs as Markdown; the fastest variant per model and batch size is bold."""
    return "\n\n".join(part for part in (_model_table(runs), _end_to_end_table(runs)) if part) + "\n"


def write_report(runs: Sequence[BenchmarkRun], folder: Path) -> list[Path]:
    """Write report.md, and a plot for each model with `ModelRow`s, into `folder`; return the paths.

    Raises OSError, and MissingDependencyError if matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = dict.fromkeys(row.model for run in runs for row in run.model)
    if models:
        require_plots()
        from resnet_service.benchmark import plots
    plot_paths = [folder / f"{model}.png" for model in models]
    for model, path in zip(models, plot_paths, strict=True):
        plots.over_batch_sizes(runs, model, path)
    images = "".join(f"\n![{path.stem}]({path.name})\n" for path in plot_paths)
    report = folder / "report.md"
    report.write_text(f"{_hardware_table(runs)}\n{markdown_table(runs)}{images}", encoding="utf-8")
    return [report, *plot_paths]


def _hardware_table(runs: Sequence[BenchmarkRun]) -> str:
    lines = ["| processor | GPU | memory | system | PyTorch | measured |", "|---|---|---|---|---|---|"]
    for run in runs:
        hardware = run.hardware
        memory = "" if hardware.memory_gib is None else f"{hardware.memory_gib:.0f} GiB"
        lines.append(
            f"| {hardware.processor}, {hardware.cores} cores | {hardware.gpu or ''} | {memory} "
            f"| {hardware.os}, {hardware.architecture} | {hardware.torch} | {run.measured_at[:10]} |"
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
        "| model | machine | variant | batch size | p50 ms | p99 ms | images/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for run, row in sorted(rows, key=lambda pair: (pair[1].model, pair[1].batch_size)):
        rate = f"{row.images_per_second:,.1f}"
        if row.images_per_second == best[row.model, row.batch_size]:
            rate = f"**{rate}**"
        lines.append(
            f"| {row.model} | {run.machine(row.variant)} | {row.variant} | {row.batch_size} "
            f"| {row.p50_ms:.1f} | {row.p99_ms:.1f} | {rate} |"
        )
    return "\n".join(lines)


def _end_to_end_table(runs: Sequence[BenchmarkRun]) -> str:
    rows = [(run, row) for run in runs for row in run.end_to_end]
    if not rows:
        return ""
    lines = [
        "| model | machine | variant | batch size | images | seconds | images/s | preprocessing | 1 worker |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, row in rows:
        lines.append(
            f"| {row.model} | {run.machine(row.variant)} | {row.variant} | {row.batch_size} "
            f"| {row.images:,} | {row.seconds:.1f} | {row.images_per_second:,.1f} "
            f"| {row.preprocessing_per_second:,.0f}/s with {row.workers} workers "
            f"| {row.preprocessing_with_one_worker:,.0f}/s |"
        )
    return "\n".join(lines)
