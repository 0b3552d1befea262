"""One training run: from images to a folder with a checkpoint that can be served, and how it was made."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resnet_service import __version__
from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError, TrainingError
from resnet_service.machine import hardware_info
from resnet_service.models import Model, checkpoint, load_weights
from resnet_service.runtimes.pytorch import translate_device_errors
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.training import model_card, require_plots
from resnet_service.training.data import Dataset, TrainTestData
from resnet_service.training.evaluate import evaluate
from resnet_service.training.recipes import TrainingSetup
from resnet_service.training.run_dir import RunDirectory
from resnet_service.training.trainer import Epoch, Normalize, Step, Trainer, TrainingConfig

_STORED: Final = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class RunConfig:
    """What was asked for; an interrupted run goes on under an equal request only.

    `data` and `test_share` are what the images were loaded from; `store` is the precision of the weights in
    the checkpoint.
    """

    network: str
    data: str
    options: TrainingConfig
    size: int
    pretrained: str | None = None
    frozen: bool = False
    test_share: float = 0.2
    device: str = "auto"
    precision: Precision = "fp32"
    store: str = "fp32"
    compile: bool = False
    deterministic: bool = False


def run(
    request: RunConfig,
    start: TrainingSetup,
    folder: RunDirectory,
    load: Callable[[], TrainTestData],
    *,
    resume: bool = False,
) -> Mapping[str, Any]:
    """Train as `request` says from `start`, write into `folder`, and return the run's log.

    `load` reads the images, and is called once all else is known to be usable. `resume` goes on after the
    last epoch that was finished there; what is finished is not done again. Raises TrainingError for a
    network that cannot take the images, a folder that holds another run or cannot be written, too little
    memory, and a loss that diverges; and what `load` and `start.build` raise.
    """
    require_plots()
    with folder.locked():
        _check_earlier(request, folder, resume=resume)
        if folder.finished():
            return folder.read_log()
        if request.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
        torch.use_deterministic_algorithms(request.deterministic)
        try:
            _dry_run(start, request, folder)
            return _run(request, start, folder, load())
        except (DeviceOutOfMemoryError, torch.OutOfMemoryError) as error:
            raise TrainingError("out of memory; lower --batch-size or --size") from error


def _run(
    request: RunConfig, start: TrainingSetup, folder: RunDirectory, loaded: TrainTestData
) -> Mapping[str, Any]:
    torch.manual_seed(request.options.seed)
    network = start.build(len(loaded.labels), frozen=request.frozen)
    preprocessing = start.preprocessing
    if start.unknown_statistics:
        mean, std = _statistics(loaded.train)
        preprocessing = replace(preprocessing, mean=mean, std=std)
    log = _initial_log(request, network, loaded)
    with translate_device_errors():
        trainer = Trainer(
            network,
            Normalize(preprocessing.mean, preprocessing.std),
            loaded.train,
            loaded.test,
            request.options,
            device=torch.device(request.device),
            autocast=torch.bfloat16 if request.precision == "bf16" else None,
            frozen=request.frozen,
            compiled=request.compile,
        )
        if folder.started():
            _restore(trainer, log, folder)
        _train(trainer, log, folder, request)
    state = _export_state_dict(trainer.trained, _STORED[request.store])
    load_weights(network, state, request.network)
    model = Model(folder.path.name, network.cpu().eval(), loaded.labels, preprocessing, folder.model.name)
    counts = _evaluate_final(model, log, loaded.test, request)
    training = {key: value for key, value in log.items() if key != "unreadable"}
    trained = checkpoint.Checkpoint(start.network, loaded.labels, preprocessing, state, training)
    folder.save_result(trained, log, counts, loaded.labels)
    return log


def _dry_run(start: TrainingSetup, request: RunConfig, folder: RunDirectory) -> None:
    """Find out before anything else that the network can be built, fits the disk, and takes every size."""
    network = start.build(2, frozen=request.frozen)
    folder.check_disk_space(sum(parameter.numel() for parameter in network.parameters()))
    sizes = {request.options.size(number, request.size) for number in range(1, request.options.epochs + 1)}
    for size in sorted(sizes):
        try:
            for training in (False, True):  # googlenet and inception have layers for training alone
                network.train(training)(torch.zeros(2, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            way_out = "--no-progressive" if size < request.size else "another --size"
            raise TrainingError(
                f"{request.network} cannot take images of {size} pixels ({error}); try {way_out}"
            ) from error


def _restore(trainer: Trainer, log: dict[str, Any], folder: RunDirectory) -> None:
    """Bring trainer and log to where the run in `folder` was interrupted."""
    state = folder.load_state_dict()
    if state["digest"] != log["digest"]:
        raise TrainingError(f"the run in {folder.path} had other images or classes than there are now")
    try:
        trainer.restore(state["trainer"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"the run in {folder.path} cannot go on: {error}") from error
    log |= {"epochs": state["epochs"], "seconds": state["seconds"]}
    log["resumed_after"] = [*state["resumed_after"], trainer.finished]


def _evaluate_final(model: Model, log: dict[str, Any], test_set: Dataset, request: RunConfig) -> Tensor:
    """Write into the log how good the network is, as it will be served, and return its confusion matrix."""
    [runtime] = create_runtimes(model, [torch.device(request.device)], streams_per_device=1)
    batch_size = request.options.batch_size
    plain = evaluate(model, runtime, test_set, batch_size=batch_size)
    mirrored = evaluate(model, runtime, test_set, batch_size=batch_size, mirrored=True)
    log["tested_in"] = runtime.precision
    log["accuracy"], log["accuracy_mirrored"] = plain.accuracy, mirrored.accuracy
    log["accuracy_by_class"] = model_card.accuracy_by_class(plain.confusion, model.labels)
    return plain.confusion


def _train(trainer: Trainer, log: dict[str, Any], folder: RunDirectory, request: RunConfig) -> None:
    """Run the epochs that are left, with a bar for all of them, and keep what each one brought."""
    options = request.options

    def work(number: int) -> float:
        """Return an epoch's share of work, in epochs of full size: what the time left is reckoned by."""
        return (options.size(number, request.size) / request.size) ** 2

    with tqdm(
        total=sum(work(number) for number in range(1, options.epochs + 1)),
        initial=sum(work(number) for number in range(1, trainer.finished + 1)),
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    ) as bar:

        def show(step: Step) -> None:
            if bar.update(work(step.epoch) / trainer.steps):  # whenever the bar was drawn anew
                bar.set_description(f"epoch {step.epoch}/{options.epochs}", refresh=False)
                bar.set_postfix(
                    loss=f"{step.loss.item():.3f}",
                    accuracy=f"{step.right.item():.1%}",
                    lr=f"{step.learning_rate:.4f}",
                    refresh=False,
                )

        while trainer.finished < options.epochs:
            started = time.perf_counter()
            epoch = trainer.epoch(show)
            log["epochs"].append(asdict(epoch))
            log["seconds"] += time.perf_counter() - started
            folder.save_epoch(
                {
                    "request": asdict(request),
                    "trainer": trainer.state(),
                    **{key: log[key] for key in ("digest", "epochs", "seconds", "resumed_after")},
                },
                log,
            )
            bar.write(_format_epoch(epoch), file=sys.stderr)
        bar.refresh()


def _format_epoch(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number:3}  {epoch.size:3} px  loss {epoch.loss:.4f}  "
        f"accuracy {epoch.train_accuracy:6.2%} training {epoch.accuracy:6.2%} test  {epoch.seconds:6.1f} s"
    )


def _check_earlier(request: RunConfig, folder: RunDirectory, *, resume: bool) -> None:
    """Reject to write over another run, and to go on with one under another request."""
    if not (folder.started() or folder.finished()):
        return
    if not resume:
        what = "a finished run" if folder.finished() else "an interrupted run"
        raise TrainingError(f"{folder.path} holds {what}; give --resume, or another --out")
    before = (folder.read_log() if folder.finished() else folder.load_state_dict())["request"]
    now = asdict(request)
    options = {**now.pop("options"), **now}
    earlier = {**before.pop("options"), **before}
    same_images = {"data"}  # a path may be written in several ways; the images' digest is compared
    if changed := [key for key in options.keys() - same_images if options[key] != earlier.get(key)]:
        differences = ", ".join(
            f"{key} {earlier.get(key)!r} there and {options[key]!r} here" for key in changed
        )
        raise TrainingError(f"{folder.path} holds a run that was asked for otherwise: {differences}")


def _initial_log(request: RunConfig, network: nn.Module, loaded: TrainTestData) -> dict[str, Any]:
    """Begin the log of a run: what is known before its first epoch."""
    return {
        "network": request.network,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "pretrained": request.pretrained,
        "size": request.size,
        "data": loaded.name,
        "images": {"train": len(loaded.train), "test": len(loaded.test)},
        "split": loaded.split,
        "digest": loaded.digest(),
        "unreadable": {**loaded.train.unreadable, **loaded.test.unreadable},
        "request": asdict(request),
        "version": __version__,
        "revision": model_card.git_revision(),
        "hardware": asdict(hardware_info()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_after": [],
        "seconds": 0.0,
        "epochs": [],
    }


def _export_state_dict(network: nn.Module, precision: torch.dtype) -> dict[str, Tensor]:
    """Return the weights on the CPU; integers, batch norm's counters, stay as they are."""
    return {
        key: value.detach().cpu().to(precision) if value.is_floating_point() else value.detach().cpu()
        for key, value in network.state_dict().items()
    }


def _statistics(dataset: Dataset) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel, of pixels scaled to 0..1, to four digits."""
    total = torch.zeros(3, dtype=torch.float64)
    squares = torch.zeros(3, dtype=torch.float64)
    for part in dataset.images.split(max(1, 2**22 // dataset.images.shape[-1] ** 2)):
        pixels = part.double() / 255
        total += pixels.mean((2, 3)).sum(0)
        squares += pixels.square().mean((2, 3)).sum(0)
    mean = total / len(dataset)
    std = (squares / len(dataset) - mean.square()).clamp(min=1e-6).sqrt()
    return _triple(mean), _triple(std)


def _triple(values: Tensor) -> tuple[float, float, float]:
    red, green, blue = (round(value, 4) for value in values.tolist())
    return red, green, blue
