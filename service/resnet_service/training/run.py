"""Run one training: from images to a directory with a checkpoint that can be served, a log and a card."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from resnet_service.devices import Precision
from resnet_service.errors import DeviceOutOfMemoryError, TrainingError
from resnet_service.models import Model, checkpoint, load_weights
from resnet_service.runtimes.pytorch import translate_device_errors
from resnet_service.runtimes.selection import create_runtimes
from resnet_service.training.data import Dataset, TrainTestData
from resnet_service.training.evaluate import evaluate
from resnet_service.training.recipes import TrainingSetup
from resnet_service.training.run_dir import RunDirectory
from resnet_service.training.run_log import config_differences, new_log
from resnet_service.training.run_warnings import check_accuracy, check_loss, check_steps
from resnet_service.training.trainer import Epoch, Normalize, Step, Trainer, TrainingConfig

_STORE_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class RunConfig:
    """All options of a run; an interrupted run can be resumed only with an equal configuration.

    Attributes:
        network: its name in the checkpoint.
        data: where the images were loaded from.
        training: hyperparameters.
        size: side of the input in pixels.
        pretrained: where the initial weights come from, None for random weights.
        frozen: train only the last layer.
        test_share: share of the images for testing, if the data has no test images.
        device: of PyTorch.
        precision: of autocast.
        store: precision of the weights in the checkpoint, fp32 or fp16.
        compile: use torch.compile.
        deterministic: reject operations whose results vary from run to run.

    """

    network: str
    data: str
    training: TrainingConfig
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
    config: RunConfig,
    setup: TrainingSetup,
    directory: RunDirectory,
    load_data: Callable[[], TrainTestData],
    *,
    resume: bool = False,
) -> Mapping[str, Any]:
    """Train `setup` as configured, write the results into `directory`, and return the run's log.

    `load_data` is called only after everything else has been checked. `resume` continues after the last
    completed epoch in `directory`, and returns the log of a finished run without training. Needs matplotlib:
    call `require_plots` first. Raises
    TrainingError for a network that does not support the images, a directory that holds another run or
    cannot be written, too little memory, and a loss that diverges; and whatever `load_data` and
    `setup.build` raise.
    """
    with directory.locked():
        check_earlier_run(config, directory, resume=resume)
        if directory.is_finished():
            return directory.read_log()
        if config.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(config.deterministic)
        try:
            _dry_run(config, setup, directory)
            return _train_and_save(config, setup, directory, load_data())
        except (DeviceOutOfMemoryError, torch.OutOfMemoryError) as error:
            raise TrainingError("out of memory; lower --batch-size or --size") from error


def check_earlier_run(config: RunConfig, directory: RunDirectory, *, resume: bool) -> None:
    """Raise TrainingError if `directory` has a run that is not to be resumed or has different options."""
    if not (directory.is_resumable() or directory.is_finished()):
        return
    if not resume:
        kind = "a finished run" if directory.is_finished() else "an interrupted run"
        raise TrainingError(f"{directory.path} holds {kind}; use --resume, or another --output")
    earlier = directory.read_log() if directory.is_finished() else directory.load_resume_state()
    if differences := config_differences(earlier["config"], asdict(config)):
        raise TrainingError(
            f"the run in {directory.path} was started with different options: {', '.join(differences)}"
        )


def _dry_run(config: RunConfig, setup: TrainingSetup, directory: RunDirectory) -> None:
    """Check that the network can be built, fits the disk, and supports every image size of the run."""
    network = setup.build(2, frozen=config.frozen)
    directory.check_disk_space(_count_parameters(network))
    epochs = range(1, config.training.epochs + 1)
    for size in sorted({config.training.size(number, config.size) for number in epochs}):
        try:
            for is_training in (False, True):  # googlenet and inception have layers for training only
                network.train(is_training)(torch.zeros(2, 3, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            hint = "--no-progressive" if size < config.size else "another --size"
            raise TrainingError(
                f"{config.network} does not support images of {size} pixels ({error}); try {hint}"
            ) from error


def _count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _train_and_save(
    config: RunConfig, setup: TrainingSetup, directory: RunDirectory, data: TrainTestData
) -> Mapping[str, Any]:
    torch.manual_seed(config.training.seed)
    network = setup.build(len(data.labels), frozen=config.frozen)
    preprocessing = setup.preprocessing
    if setup.needs_statistics:
        mean, std = data.train.channel_statistics()
        preprocessing = replace(preprocessing, mean=mean, std=std)
    log = new_log(asdict(config), _count_parameters(network), data)
    with translate_device_errors():
        trainer = Trainer(
            network,
            Normalize(preprocessing.mean, preprocessing.std),
            data.train,
            data.test,
            config.training,
            device=torch.device(config.device),
            autocast=torch.bfloat16 if config.precision == "bf16" else None,
            frozen=config.frozen,
            compiled=config.compile,
        )
        if directory.is_resumable():
            _restore(trainer, log, directory)
        steps = config.training.epochs * trainer.steps_per_epoch
        _warn(log, check_steps(steps, len(data.train), is_pretrained=setup.weights is not None))
        _train_epochs(trainer, log, directory, config, len(data.labels))
    state = _export_state_dict(trainer.result, _STORE_DTYPES[config.store])
    load_weights(network, state, config.network)
    model = Model(directory.path.name, network.cpu().eval(), data.labels, preprocessing, directory.model.name)
    confusion = _evaluate_final(model, log, data.test, config)
    is_pretrained = setup.weights is not None
    _warn(log, check_accuracy(log["accuracy"], data.test.targets, is_pretrained=is_pretrained))
    training = {key: value for key, value in log.items() if key != "unreadable"}
    trained = checkpoint.Checkpoint(setup.network, data.labels, preprocessing, state, training)
    directory.save_result(trained, log, confusion, data.labels)
    return log


def _warn(log: dict[str, Any], message: str | None) -> None:
    """Print a warning to standard error and add it to the log, unless the log has it already."""
    if message is not None and message not in log["warnings"]:
        log["warnings"].append(message)
        tqdm.write(f"warning: {message}", file=sys.stderr)


def _restore(trainer: Trainer, log: dict[str, Any], directory: RunDirectory) -> None:
    """Restore trainer and log to the last completed epoch of the run in `directory`."""
    state = directory.load_resume_state()
    if state["digest"] != log["digest"]:
        raise TrainingError(f"the images or classes differ from those of the run in {directory.path}")
    try:
        trainer.restore(state["trainer"])
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"the run in {directory.path} cannot be resumed: {error}") from error
    log |= {key: state[key] for key in ("epochs", "seconds", "warnings")}
    log["resumed_after"] = [*state["resumed_after"], trainer.completed_epochs]


def _train_epochs(
    trainer: Trainer, log: dict[str, Any], directory: RunDirectory, config: RunConfig, classes: int
) -> None:
    """Train the remaining epochs and save each one, with one progress bar for all."""
    training = config.training

    def work(number: int) -> float:
        """Return the work of an epoch as a share of one at full size, for the remaining time."""
        return (training.size(number, config.size) / config.size) ** 2

    with tqdm(
        total=sum(work(number) for number in range(1, training.epochs + 1)),
        initial=sum(work(number) for number in range(1, trainer.completed_epochs + 1)),
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
    ) as bar:

        def show(step: Step) -> None:
            if bar.update(work(step.epoch) / trainer.steps_per_epoch):  # only if the bar was redrawn
                bar.set_description(f"epoch {step.epoch}/{training.epochs}", refresh=False)
                bar.set_postfix(
                    loss=f"{step.loss.item():.3f}",
                    accuracy=f"{step.accuracy.item():.1%}",
                    lr=f"{step.learning_rate:.4f}",
                    refresh=False,
                )

        while trainer.completed_epochs < training.epochs:
            started = time.perf_counter()
            epoch = trainer.train_epoch(show)
            log["epochs"].append(asdict(epoch))
            log["seconds"] += time.perf_counter() - started
            _warn(log, check_loss([epoch["loss"] for epoch in log["epochs"]], classes))
            resume_keys = ("config", "digest", "epochs", "seconds", "resumed_after", "warnings")
            directory.save_epoch({"trainer": trainer.state(), **{key: log[key] for key in resume_keys}}, log)
            bar.write(_format_epoch(epoch), file=sys.stderr)
        bar.refresh()


def _format_epoch(epoch: Epoch) -> str:
    return (
        f"epoch {epoch.number:3}  {epoch.size:3} px  loss {epoch.loss:.4f}  "
        f"accuracy {epoch.train_accuracy:6.2%} training {epoch.accuracy:6.2%} test  {epoch.seconds:6.1f} s"
    )


def _export_state_dict(network: nn.Module, precision: torch.dtype) -> dict[str, Tensor]:
    """Return the weights on the CPU; integers, the counters of batch norm, keep their type."""
    return {
        key: value.detach().cpu().to(precision) if value.is_floating_point() else value.detach().cpu()
        for key, value in network.state_dict().items()
    }


def _evaluate_final(model: Model, log: dict[str, Any], test_set: Dataset, config: RunConfig) -> Tensor:
    """Add the accuracy of the model, as it will be served, to the log; return its confusion matrix."""
    [runtime] = create_runtimes(model, [torch.device(config.device)], streams_per_device=1)
    batch_size = config.training.batch_size
    plain = evaluate(model, runtime, test_set, batch_size=batch_size)
    mirrored = evaluate(model, runtime, test_set, batch_size=batch_size, mirrored=True)
    log["tested_in"] = runtime.precision
    log["accuracy"], log["accuracy_mirrored"] = plain.accuracy, mirrored.accuracy
    log["accuracy_by_class"] = {**dict.fromkeys(model.labels), **plain.accuracy_by_class()}
    return plain.confusion
