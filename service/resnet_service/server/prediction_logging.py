"""Connect requests with the prediction log, which needs an extra: it is imported if the settings have one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from resnet_service.metrics import Metrics
from resnet_service.models import ModelDescription
from resnet_service.prediction_log import require_parquet
from resnet_service.runtimes import TopKResult
from resnet_service.settings import Settings

if TYPE_CHECKING:
    from resnet_service.prediction_log.log import PredictionLog

LogPrediction = Callable[[bytes | bytearray, TopKResult], None]
"""Logs the upload and the result of one image of a request."""

_DAY_S: Final = 86_400.0


def create_prediction_log(
    settings: Settings, metrics: Metrics, *, is_checked: bool = False
) -> "PredictionLog | None":
    """Return the prediction log of a process that handles requests; None if the settings have none.

    Writes to its folder to check it, unless it `is_checked`. Raises MissingDependencyError and StorageError.
    """
    if not settings.prediction_log:
        return None
    require_parquet()
    from resnet_service.prediction_log.folder import LogFolder
    from resnet_service.prediction_log.log import PredictionLog, Sampling
    from resnet_service.storage import resolve_location

    location = resolve_location(settings.prediction_log)
    folder = LogFolder(
        location, int(settings.prediction_log_max_mb * 1e6), settings.prediction_log_days * _DAY_S
    )
    if not is_checked:
        folder.check()
    sampling = Sampling(
        settings.prediction_log_share, settings.prediction_log_below, settings.prediction_log_rate
    )
    return PredictionLog(
        folder,
        sampling,
        metrics.prediction_log,
        interval_s=settings.prediction_log_interval_s,
        with_images=settings.prediction_log_images,
    )


def log_function(
    log: "PredictionLog | None", scope: Mapping[str, Any], model: ModelDescription
) -> LogPrediction | None:
    """Return the function that logs images of a request; None without a log, or if its API key has opted out.

    `scope` is that of `resnet_service.server.admission`.
    """
    if log is None or scope.get("is_unlogged"):
        return None
    return partial(log.add, model, scope["request_id"], scope.get("api_key_name"))
