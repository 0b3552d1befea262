"""`python -m load_tests.peers`: run this service and others in turn on the same image, and compare them."""

import json
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import click
import torch
from torchvision.models import resnet50
from tqdm import tqdm

from load_tests import wrk
from load_tests.peers.competitors import PEERS, Competitor, python_of, started, wait_until_it_answers
from load_tests.peers.report import write
from resnet_service.machine import hardware_info

_SERVE: Final = ("-m", "resnet_service", "serve", "--log-format", "json", "--no-access-log")
_WARM_UP_S: Final = 3


def competitors(weights: Path, int8: Path | None) -> dict[str, list[Competitor]]:
    """Return who takes part, by what is compared."""
    ours = Competitor("this service", (*_SERVE, "--weights", str(weights)))
    no_op = Competitor("this service", ("-m", "load_tests.peers.servers.this_service"))
    tables = {"default precision": [ours, *PEERS], "no model": [no_op, *PEERS]}
    if int8 is not None:
        tables["int8"] = [Competitor("this service", (*_SERVE, "--model", str(int8)))]
    return tables


@click.command()
@click.option(
    "--image",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The JPEG that each request carries.",
)
@click.option("--connections", type=click.IntRange(1), default=16)
@click.option("--seconds", type=click.IntRange(1), default=12, help="Of each measurement.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="The table has the medians.")
@click.option("--only", multiple=True, help="Leave the others out.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("peers"))
def main(image: Path, connections: int, seconds: int, rounds: int, only: tuple[str, ...], out: Path) -> None:
    """Compare this service with others that serve the same ResNet-50, over HTTP, on this machine.

    wrk is needed (a Debian package of that name). The others are installed under --out.
    """
    wrk.require()
    out.mkdir(parents=True, exist_ok=True)
    weights = _random_weights(out)
    tables = competitors(weights, _int8(weights, image, out))
    turns = [
        (table, contestant)
        for _ in range(rounds)
        for table, some in tables.items()
        for contestant in some
        if not only or contestant.name in only
    ]
    pythons = {contestant: python_of(contestant, out) for _, contestant in turns}
    runs: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for table, contestant in (bar := tqdm(turns)):
        bar.set_description(f"{contestant.name}, {table}")
        no_op = {"NOOP": "1"} if table == "no model" else {}
        log = out / f"{contestant.name} {table}.log".replace(" ", "-")
        with started(contestant.command, pythons[contestant], log, WEIGHTS=str(weights), **no_op) as port:
            url = f"http://127.0.0.1:{port}{contestant.route}"
            wait_until_it_answers(url, image.read_bytes(), contestant.body)
            wrk.load(url, image, contestant.body, connections, _WARM_UP_S)
            run = wrk.load(url, image, contestant.body, connections, seconds)
            runs[table, contestant.name].append(run)
    rows = [
        {"table": table, "server": name, "runs": results, **_medians(results)}
        for (table, name), results in runs.items()
    ]
    facts = {"hardware": hardware_info().__dict__, "connections": connections, "rows": rows}
    (out / "results.json").write_text(json.dumps(facts, indent=2))
    click.echo(write(rows, out))


def _medians(results: list[dict[str, float]]) -> dict[str, Any]:
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def _random_weights(folder: Path) -> Path:
    """Write a ResNet-50's state dict: random weights take as long as trained ones."""
    path = folder / "resnet50-random.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(resnet50().state_dict(), path)
    return path


def _int8(weights: Path, image: Path, folder: Path) -> Path | None:
    """Quantize them; None where that cannot be done here."""
    path = folder / "resnet50-int8.safetensors"
    images = folder / "calibration"
    if not path.exists():
        images.mkdir(exist_ok=True)
        shutil.copy(image, images)
        command = ["quantize", "resnet50", "--weights", str(weights), "--images", str(images)]
        result = subprocess.run(
            [sys.executable, "-m", "resnet_service", *command, "--out", str(path)], check=False
        )
        return path if result.returncode == 0 else None
    return path


if __name__ == "__main__":
    main()
