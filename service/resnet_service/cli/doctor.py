"""`resnet-service doctor`: whether this machine is fit to serve."""

import json
import sys
from dataclasses import asdict

import click

_STATUS_MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "problem": ("✗", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each finding, a line each.")
def doctor(as_json: bool) -> None:
    """Verify the installation and the devices, and say what to do about each finding.

    The exit status is 1 where there is a problem.

    \b
    Examples:
      resnet-service doctor
      resnet-service doctor --json | jq -r 'select(.state == "problem") | .hint'
    """
    from resnet_service.diagnostics.checks import run_checks

    problems = 0
    for finding in run_checks():
        problems += finding.state == "problem"
        if as_json:
            click.echo(json.dumps(asdict(finding)))
            continue
        mark, color = _STATUS_MARKS[finding.state]
        click.echo(f"{click.style(mark, fg=color)} {click.style(finding.name, bold=True)}: {finding.detail}")
        if finding.hint:
            click.echo(f"    {finding.hint}")
    if not as_json:
        click.echo(f"\n{problems} problems" if problems else "\nNothing keeps this machine from serving.")
    sys.exit(1 if problems else 0)
