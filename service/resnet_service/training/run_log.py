"""The record of a run: its log (configuration, data, code, hardware, results) and its model card."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from resnet_service import __version__
from resnet_service.machine import hardware_info
from resnet_service.training.data import TrainTestData


def new_log(config: Mapping[str, Any], parameters: int, data: TrainTestData) -> dict[str, Any]:
    """Return the log of a run before its first epoch; `config` is a `RunConfig` as a dictionary."""
    return {
        "network": config["network"],
        "parameters": parameters,
        "pretrained": config["pretrained"],
        "size": config["size"],
        "data": data.name,
        "images": {"train": len(data.train), "test": len(data.test)},
        "test_share": data.test_share,
        "digest": data.digest(),
        "unreadable": {**data.train.unreadable, **data.test.unreadable},
        "config": config,
        "version": __version__,
        "revision": git_revision(),
        "hardware": asdict(hardware_info()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_after": [],
        "seconds": 0.0,
        "epochs": [],
        "warnings": [],
    }


def git_revision() -> str | None:
    """Return the commit of this code, with "+changes" if files differ from it; None outside a git clone."""
    folder = Path(__file__).parents[1]

    def git(*command: str) -> str:
        return subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *command],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # fails in another project's clone
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def config_differences(earlier: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe each option in which two `RunConfig` dictionaries differ, except the path of the data.

    One path can be written in several ways; a resumed run compares the digest of the images instead.
    """
    before, now = _flatten(earlier), _flatten(current)
    return [
        f"{key} was {before.get(key)!r} and is now {value!r}"
        for key, value in now.items()
        if key != "data" and value != before.get(key)
    ]


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config["training"], **{key: value for key, value in config.items() if key != "training"}}


def render_model_card(log: Mapping[str, Any]) -> str:
    """Return the Markdown card for the log of a finished run."""
    hardware, config, images = log["hardware"], log["config"], log["images"]
    training, processor = config["training"], hardware["gpu"] or hardware["processor"]
    rows = {
        "Network": f"{log['network']}, {log['parameters']:,} parameters",
        "Input": f"[N, 3, {log['size']}, {log['size']}]",
        "Data": f"{log['data']}: {images['train']:,} training and {images['test']:,} test images",
        "Initial weights": log["pretrained"] or "random",
        "Test accuracy": f"{log['accuracy']:.2%}",
        "Test accuracy with mirror images": f"{log['accuracy_mirrored']:.2%}",
        "Epochs": f"{training['epochs']} in {log['seconds'] / 60:.1f} minutes",
        "Seed": str(training["seed"]),
        "Hyperparameters": f"`{json.dumps(training)}`",
        "Precision": f"{config['precision']}; stored as {config['store']}, tested in {log['tested_in']}",
        "Hardware": f"{processor}, {hardware['cores']} cores, {hardware['os']}",
        "Software": f"resnet-service {log['version']}, torch {hardware['torch']}",
        "Revision": log["revision"] or "unknown",
    }
    lines = [f"# {log['network']} on {log['data']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "| class | accuracy |", "|---|---|"]
    for label, accuracy in log["accuracy_by_class"].items():
        lines.append(f"| {label} | {'no test images' if accuracy is None else f'{accuracy:.1%}'} |")
    return "\n".join(lines) + "\n"
