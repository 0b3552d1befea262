"""One training run, from a folder of pictures to a checkpoint and its card."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from service import __version__, hardware
from service.errors import TrainingImpossible
from service.images import Preprocessing
from service.models import checkpoint
from service.models.networks import NETWORKS
from service.training.data import Dataset, class_names, load_folder
from service.training.loop import Normalise, Options, predictions, train


def run(
    data: Path, out: Path, *, network: str, size: int, device: str, options: Options
) -> checkpoint.Checkpoint:
    """Train `network` on data/train/CLASS/*, test it on data/test/CLASS/*, and write `out` and its card.

    `size` is the side of the model's input in pixels. The card is `out` with the suffix .md. Raises
    TrainingImpossible for an unknown network, for data that cannot be trained on, and where `out` cannot be
    written.
    """
    if network not in NETWORKS:
        raise TrainingImpossible(
            f"there is no network {network!r} to train; choose from {', '.join(NETWORKS)}"
        )
    target = hardware.choose_device(device)
    precision = hardware.choose_precision(target)
    labels = class_names(data / "train")
    if class_names(data / "test") != labels:
        raise TrainingImpossible(f"{data}/train and {data}/test have different classes")
    _check_writable(out)
    plain = Preprocessing(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    train_set = load_folder(data / "train", labels, plain)
    test_set = load_folder(data / "test", labels, plain)
    mean, std = _statistics(train_set)
    torch.manual_seed(options.seed)
    model = NETWORKS[network](len(labels))
    normalise = Normalise(mean, std)
    started = time.perf_counter()
    epochs = []
    # bf16 for fp16 too: fp16's gradients would need a loss scaler.
    autocast = {"bf16": torch.bfloat16, "fp16": torch.bfloat16}.get(precision)
    for epoch in train(model, normalise, train_set, test_set, options, device=target, autocast=autocast):
        epochs.append(epoch)
        tqdm.write(
            f"epoch {epoch.number:3}  loss {epoch.loss:.4f}  test accuracy {epoch.accuracy:7.2%}  "
            f"{epoch.seconds:6.1f} s"
        )
    seconds = time.perf_counter() - started
    training = {
        "data": data.resolve().name,
        "pictures": {"train": len(train_set), "test": len(test_set)},
        "accuracy": epochs[-1].accuracy,
        "accuracy_by_class": _by_class(
            predictions(model, normalise, test_set, device=target), test_set.targets, labels
        ),
        "options": asdict(options),
        "epochs": [asdict(epoch) for epoch in epochs],
        "seconds": seconds,
        "training_precision": "bf16 autocast" if autocast else "fp32",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "version": __version__,
        "hardware": asdict(hardware.fingerprint()),
    }
    trained = checkpoint.Checkpoint(
        network=network,
        labels=labels,
        preprocessing=Preprocessing(size, size, mean, std),
        state={key: value.detach().cpu() for key, value in model.state_dict().items()},
        training=training,
    )
    try:
        checkpoint.save(trained, out)
        out.with_suffix(".md").write_text(card(trained), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise TrainingImpossible(f"{out} could not be written: {error}") from error
    return trained


def _check_writable(out: Path) -> None:
    """Find out before the training, not after it."""
    if out.suffix != ".safetensors":
        raise TrainingImpossible(f"a checkpoint's name ends in .safetensors, and {out.name!r} does not")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise TrainingImpossible(f"{out} cannot be written: {error.strerror}") from error


def card(trained: checkpoint.Checkpoint) -> str:
    """Describe a checkpoint for people, as Markdown: what it is, what it was trained on, how good it is."""
    facts = trained.training
    machine = facts["hardware"]
    rows = {
        "Network": f"{trained.network}, {facts['parameters']:,} parameters",
        "Input": f"[N, 3, {trained.preprocessing.crop}, {trained.preprocessing.crop}]",
        "Data": f"{facts['data']}: {facts['pictures']['train']:,} training and {facts['pictures']['test']:,} "
        "test pictures",
        "Test accuracy": f"{facts['accuracy']:.2%}",
        "Epochs": f"{facts['options']['epochs']} in {facts['seconds'] / 60:.1f} minutes",
        "Seed": str(facts["options"]["seed"]),
        "Options": f"`{json.dumps(facts['options'])}`",
        "Precision": facts["training_precision"],
        "Hardware": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, {machine['os']}",
        "Software": f"resnet-service {facts['version']}, torch {machine['torch']}",
    }
    lines = [f"# {trained.network} on {facts['data']}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += ["", "| class | accuracy |", "|---|---|"]
    lines += [f"| {label} | {accuracy:.1%} |" for label, accuracy in facts["accuracy_by_class"].items()]
    return "\n".join(lines) + "\n"


def _statistics(dataset: Dataset) -> tuple[Any, Any]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, to four digits."""
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for part in dataset.pictures.split(1000):
        pixels = part.double() / 255
        total += pixels.mean((2, 3)).sum(0)
        squares += pixels.square().mean((2, 3)).sum(0)
    mean = total / len(dataset)
    std = (squares / len(dataset) - mean.square()).sqrt().clamp(min=1e-3)
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())


def _by_class(predicted: torch.Tensor, targets: torch.Tensor, labels: tuple[str, ...]) -> dict[str, float]:
    return {
        label: (predicted[targets == index] == index).float().mean().item()
        for index, label in enumerate(labels)
    }
