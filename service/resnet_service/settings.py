"""Every setting of `resnet-service serve`, declared once.

Each field is an environment variable RESNET_RESNET_SERVICE_<NAME> and, but for secrets, a flag --<name>; the flag wins.
Units are in the names.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

ENVIRONMENT_ONLY: Final = frozenset({"api_keys"})
"""Fields without a flag, which every user of the machine could read."""


class Settings(BaseSettings):
    """The service's configuration, checked at the start and never changed."""

    model_config = SettingsConfigDict(
        env_prefix="RESNET_SERVICE_", env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 lets the system choose one.")

    model: str = Field("resnet50", description="A torchvision classifier, a checkpoint's path, or 'bundled'.")
    weights: str | None = Field(
        None, description="Weights for a torchvision classifier: a path, a URL, or a published set's name."
    )
    devices: str = Field("auto", description="auto, cpu, mps, cuda, or several, as in cuda:0,cuda:1.")
    streams_per_device: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Batches at a time on each device; by default what is best there: 2 on a GPU.",
    )
    runtime: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="What runs the network; auto is OpenVINO on x86 CPUs where it is installed."
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = Field(
        "auto", description="Arithmetic of the network; auto is the fastest that costs no accuracy."
    )

    compile: bool = Field(
        False, description="Compile the network with torch.compile first; a CPU needs a C++ compiler for it."
    )
    cuda_graphs: bool = Field(True, description="Replay the network on an NVIDIA GPU as recorded graphs.")

    max_batch: int = Field(
        32, ge=1, le=4096, description="Largest batch given to the device, as far as it pays."
    )
    max_wait_ms: float = Field(
        0.0, ge=0, le=10_000, description="Time to wait for a batch to fill, from its oldest image on."
    )
    max_queue: int = Field(256, ge=1, description="Images that may wait; more are rejected with 429.")
    request_timeout_s: float = Field(
        30.0, gt=0, description="Time for a request's answer, after its body was read; then 504."
    )
    read_timeout_s: float = Field(30.0, gt=0, description="Time for a client to send its request; then 408.")
    drain_timeout_s: float = Field(
        25.0, ge=4, description="Time to finish accepted work after SIGTERM; then it is given up."
    )
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="A batch longer than this makes /healthz fail; after twice this, the process ends.",
    )

    max_connections: int = Field(
        16_384, ge=1, description="Open connections; beyond, the longest idle is closed for the new one."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time for a client to send a request's head; then 408."
    )
    upload_memory_mb: float = Field(
        1000.0, gt=0, description="Uploads held in memory at once, in MB (10^6 bytes); more get 429."
    )
    max_upload_mb: float = Field(20.0, gt=0, description="Largest request body, in MB (10^6 bytes).")
    max_megapixels: float = Field(50.0, gt=0, description="Largest image, in megapixels (10^6).")
    max_images_per_request: int = Field(64, ge=1, description="Most images in one request.")
    top_k: int = Field(5, ge=1, description="Classes in an answer when the request does not say.")
    bench_max_images: int = Field(
        4096, ge=1, description="Most images one /bench request may run through the device."
    )

    api_keys: SecretStr | None = Field(
        None,
        description="Keys without which only the probes answer, with commas between: KEY opens all but "
        "/reload; KEY predict metrics 10/s these parts, at most so often.",
    )
    api_keys_file: Path | None = Field(
        None, description="A file of such keys, one a line; # begins a comment."
    )
    public_scopes: str = Field(
        "", description="Parts that need no key, of predict, docs, metrics, bench; as in docs,metrics."
    )
    rate_limit: float | None = Field(
        None, gt=0, description="Requests per second with one key, where the key does not say; then 429."
    )
    cors_origins: str = Field(
        "", description="Sites whose pages may read answers, with commas between; * for all. None by default."
    )

    decode_threads: int | None = Field(
        None, ge=1, description="WorkerPool that decode images; by default one for each core."
    )
    model_threads: int | None = Field(
        None, ge=1, description="WorkerPool of the network on the CPU; by default the runtime's own choice."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto is readable on a terminal and JSON elsewhere."
    )
    access_log: bool = Field(True, description="Log one line for each request.")
    traces_url: str | None = Field(
        None,
        description="OpenTelemetry collector for spans of requests and stages, OTLP over HTTP, as in "
        "http://localhost:4318/v1/traces; needs the extra 'traces'.",
    )
