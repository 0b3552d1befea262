"""The service as a Ray Serve application, with a number of replicas that follows the load.

    serve run resnet_service.integrations.ray_serve:app model=resnet50 max_replicas=4 gpus_per_replica=0.5

Each replica is the complete FastAPI application with its own model and micro-batcher; the proxy of Ray Serve
distributes requests. Needs the extra `ray`.
"""

import math
from typing import Any, Final

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from resnet_service.devices import choose_device
from resnet_service.log_config import configure_logging
from resnet_service.runtimes.sizing import DEFAULT_MAX_BATCH
from resnet_service.server.app import create_app
from resnet_service.server.state import build_app_state
from resnet_service.settings import Settings

_MAX_QUEUED: Final = 1000


class Arguments(BaseModel):
    """Arguments of the application, passed as NAME=VALUE; RESNET_SERVICE_ variables set everything else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="As for serve; by default RESNET_SERVICE_MODEL.")
    weights: str | None = Field(None, description="As for serve; by default RESNET_SERVICE_WEIGHTS.")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, description="Above `min_replicas`, their number follows the load.")
    gpus_per_replica: float = Field(0.0, ge=0, description="0.5 puts two replicas on each GPU.")
    cpus_per_replica: float = Field(
        1.0, gt=0, description="Rounded up, also the number of decode threads and of model threads."
    )


class Replica:
    """One replica: a loaded model and the application that Ray Serve calls."""

    def __init__(self, settings: Settings, *, on_gpu: bool) -> None:
        configure_logging(settings.log_level, settings.log_format)
        if settings.device == "auto" and not on_gpu and choose_device().type == "cuda":
            settings = settings.model_copy(update={"device": "cpu"})  # Ray does not hide GPUs of other actors
        self._state = build_app_state(settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Ray Serve runs its lifespan, whose start-up includes the warm-up."""
        return create_app(self._state, start_ready=True)

    async def check_health(self) -> None:
        """Raise ServiceUnavailable if /healthz would fail, so that Ray Serve replaces the replica."""
        await self._state.backend.check_alive()


def app(arguments: Arguments) -> Application:
    """Build the application for `serve run`; raises ValidationError for invalid settings."""
    model_settings = arguments.model_dump(include={"model", "weights"}, exclude_none=True)
    # By default, Ray gives PyTorch one thread per requested core, and OpenVINO uses all cores.
    threads = math.ceil(arguments.cpus_per_replica)
    settings = Settings(**{"decode_threads": threads, "model_threads": threads, **model_settings})
    deployment: Any = serve.deployment(
        name="resnet-service",
        # More than a replica's queue, so that the replica rejects requests, with an exact Retry-After.
        max_ongoing_requests=2 * _MAX_QUEUED,
        max_queued_requests=_MAX_QUEUED,  # in the proxy, with their bodies; then 503
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": max(arguments.min_replicas, arguments.max_replicas),
            # Two batches: one on the device and one being filled; more would wait in the queue.
            "target_ongoing_requests": 2 * (settings.max_batch or DEFAULT_MAX_BATCH),
        },
        ray_actor_options={"num_gpus": arguments.gpus_per_replica, "num_cpus": arguments.cpus_per_replica},
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=5,
        health_check_timeout_s=30,
    )
    application: Application = deployment(serve.ingress()(Replica)).bind(
        settings, on_gpu=arguments.gpus_per_replica > 0
    )
    return application
