"""Classifiers of timm, with the labels and preprocessing of their published weights.

A model is called `timm/NAME`, where NAME is an architecture of timm, with or without the tag of a set of
published weights: `timm/convnext_tiny`, `timm/resnet50.a1_in1k`. Weights come from the cache of Hugging
Face's hub, or are downloaded to it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights

from resnet_service.errors import MissingDependencyError, ModelLoadError, first_line
from resnet_service.images import Preprocessing
from resnet_service.models.download import CONNECT_TIMEOUT_S, DOWNLOAD_ERRORS, check_reachable

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX: Final = "timm/"

_WEIGHTS_FILE: Final = "model.safetensors"
"""In each repository of timm on the hub."""

_INTERPOLATIONS: Final = ("bilinear", "bicubic")
_IMAGENET_1K: Final = "imagenet-1k"


def is_timm(name: str) -> bool:
    """Return whether `name` is that of a model of timm."""
    return name.startswith(PREFIX)


@dataclass(frozen=True)
class TimmSpec:
    """A classifier of timm and one set of its published weights; see `get_timm_spec`.

    `source` is a repository of Hugging Face's hub; empty if timm publishes no weights. `head` is the name of
    the last layer.
    """

    name: str
    source: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    head: str

    def build(self, classes: int | None = None) -> nn.Module:
        """Build the network with random weights for `classes` classes, by default as many as published."""
        return self._create(num_classes=classes or len(self.labels))

    @property
    def source_name(self) -> str:
        """The repository of the weights."""
        return self.source

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return `state`: files of users have the keys of their network."""
        return state

    def count_classes(self, state: Mapping[str, Tensor]) -> int | None:
        """Return the number of outputs of the last layer; None if the state dict has no such layer."""
        weight = state.get(f"{self.head}.weight")
        return weight.shape[0] if weight is not None and weight.ndim > 1 else None

    def cached_file(self) -> Path | None:
        """Return the file of the published weights in the hub's cache, None if it is not there."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.source, _WEIGHTS_FILE) if self.source else None
        return Path(cached) if isinstance(cached, str) else None

    def fetch_published(self) -> tuple[Path, bool]:
        """Return the file of the published weights in the hub's cache, and whether it was downloaded now.

        Raises ModelLoadError if the hub does not respond within 5 s, or the download fails.
        """
        from huggingface_hub import hf_hub_download, hf_hub_url

        if not self.source:
            raise ModelLoadError(f"timm publishes no weights for {self.name}; --weights FILE loads your own")
        # hf_hub_download asks the hub even for a cached file: without a network, its retries take 20 s.
        if (cached := self.cached_file()) is not None:
            return cached, False
        try:
            check_reachable(hf_hub_url(self.source, _WEIGHTS_FILE), CONNECT_TIMEOUT_S)
            return Path(hf_hub_download(self.source, _WEIGHTS_FILE)), True
        except DOWNLOAD_ERRORS as error:
            raise ModelLoadError(f"{self.source}: {first_line(error)}") from error

    def load_published(self) -> Mapping[str, Tensor]:
        """Return the published weights. Raises ModelLoadError if they cannot be had or read."""
        path, _ = self.fetch_published()
        try:
            # Not `load_file`: timm converts the keys and shapes of some files.
            overlay = {"file": str(path), "custom_load": False}
            network = self._create(pretrained=True, pretrained_cfg_overlay=overlay)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelLoadError(f"{path} is not a readable weights file: {first_line(error)}") from error
        return cast(Mapping[str, Tensor], network.state_dict())

    def _create(self, **options: Any) -> nn.Module:
        import timm

        return timm.create_model(self.name.removeprefix(PREFIX), **options)


def get_timm_spec(name: str) -> TimmSpec:
    """Return the classifier `name`, with the labels and preprocessing of timm's configuration.

    Raises MissingDependencyError without the extra `timm`, and ModelLoadError if timm does not have the
    model, it is not a classifier of known classes, or its preprocessing is not supported.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(f"{name} needs timm: make install EXTRAS=timm") from error
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short):
        similar = get_close_matches(short, timm.list_models() + timm.list_pretrained(), n=3)
        suggestion = f"; did you mean {' or '.join(PREFIX + match for match in similar)}?" if similar else ""
        raise ModelLoadError(f"timm {timm.__version__} has no model {short!r}{suggestion}")
    try:
        config = timm.get_pretrained_cfg(short)
    except RuntimeError as error:  # the tag is unknown
        raise ModelLoadError(f"{first_line(error)} Published: {_tags(short)}") from error
    if config is None:  # an architecture that was registered without a configuration
        raise ModelLoadError(f"timm does not describe the input of {short}; published: {_tags(short)}")
    heads = config.classifier or ""  # several, with those for distillation
    head = heads if isinstance(heads, str) else heads[0]
    return TimmSpec(name, config.hf_hub_id or "", _labels(name, config), _preprocessing(name, config), head)


def _tags(short: str) -> str:
    import timm

    return ", ".join(timm.list_pretrained(f"{short.partition('.')[0]}.*")) or "none"


def _labels(name: str, config: "PretrainedCfg") -> tuple[str, ...]:
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    if config.label_names:
        return tuple(config.label_names)
    subset = infer_imagenet_subset(config.to_dict())
    if subset is None:
        others = _tags(name.removeprefix(PREFIX))
        raise ModelLoadError(
            f"{name} has {config.num_classes} outputs without names, not the classes of ImageNet; "
            f"published weights of this network: {others}"
        )
    if subset == _IMAGENET_1K:  # the same names as those of torchvision's models
        return tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    return tuple(ImageNetInfo(subset).label_descriptions())


def _preprocessing(name: str, config: "PretrainedCfg") -> Preprocessing:
    """Return what timm's transform for evaluation does."""
    from timm.data.config import resolve_data_config

    values = resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = values["input_size"]
    if channels != 3 or height != width:
        raise ModelLoadError(f"{name} takes images of {channels}x{height}x{width}, not 3xNxN")
    if values["crop_mode"] != "center" or values["interpolation"] not in _INTERPOLATIONS:
        raise ModelLoadError(
            f"{name} needs crop mode {values['crop_mode']} with {values['interpolation']} interpolation, and "
            f"only center with {' or '.join(_INTERPOLATIONS)} is supported"
        )
    return Preprocessing(
        resize=math.floor(height / values["crop_pct"]),
        crop=height,
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        interpolation=values["interpolation"],
    )
