"""Settings of `resnet-service serve`, declared once.

Each field of `Settings` is an environment variable RESNET_SERVICE_<NAME> and, except for secrets, a flag
--<name>. The flag takes precedence. The `--help` text of `serve` and the table in docs/serving.md are
generated from the descriptions. Units are part of the names. An unknown RESNET_SERVICE_ variable is an error.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from resnet_service import environment, option_types
from resnet_service.environment import (
    ENVIRONMENT_ONLY,
    PAGE_API_KEY_VARIABLE,
    PAGE_URL_VARIABLE,
    describe_errors,
)
from resnet_service.proxies import ROOT_PATH_PATTERN, check_networks
from resnet_service.urls import check_http_url, normalize_origins

__all__ = ["ENVIRONMENT_ONLY", "PAGE_API_KEY_VARIABLE", "PAGE_URL_VARIABLE", "Settings", "describe_errors"]

_Port = Annotated[int, Field(ge=0, le=65535), BeforeValidator(environment.ignore_service_address)]


class Settings(BaseSettings):
    """Configuration of the service, validated at construction and immutable.

    Reads RESNET_SERVICE_* environment variables; keyword arguments take precedence. Raises
    `pydantic.ValidationError` if a value is invalid or if such a variable is unknown.

        settings = Settings(model="cifar10", port=9000)
    """

    model_config = SettingsConfigDict(
        env_prefix=environment.PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    host: Annotated[str, AfterValidator(environment.reject_service_host)] = Field(
        "127.0.0.1",
        description="Address to listen on; :: for all interfaces, IPv4 and IPv6, 0.0.0.0 for IPv4.",
    )
    port: _Port = Field(8000, description="Port to listen on; 0 selects a free port.")
    management_port: _Port = Field(
        8001,
        description="Port for probes, metrics and reload, which no load on the main port delays; 0 for none.",
    )
    grpc_port: _Port = Field(0, description="Port of the Open Inference Protocol over gRPC; 0 for none.")

    root_path: str = Field(
        "",
        pattern=ROOT_PATH_PATTERN,
        description="Prefix of all paths behind a proxy, such as /resnet; the proxy may remove it or not.",
    )
    trusted_proxies: Annotated[str, AfterValidator(check_networks)] = Field(
        "",
        description="Comma-separated addresses and networks of the proxies whose X-Forwarded-For, -Proto and "
        "-Prefix headers are used; by default none.",
    )

    model: str = Field(
        "auto",
        description="Model to serve: a classifier of torchvision or timm/NAME, efficientnet_lite0, cifar10, "
        "a checkpoint or an ONNX file; auto is resnet50, or efficientnet_lite0 if its weights cannot be had. "
        "Several are separated by commas; the first one is the default of requests.",
    )
    model_repository: Path | None = Field(
        None,
        description="Folder with models and their versions, NAME/VERSION/; --model then names those to load "
        "at the start, by default all.",
    )
    weights: str | None = Field(
        None,
        description="Weights for a torchvision classifier or efficientnet_lite0: a file, a URL, or the name "
        "of a published set.",
    )
    labels: Path | None = Field(
        None,
        description="Labels of the classes, by default those of the weights: a text file with one a line, or "
        "JSON, a list or an object from index to label.",
    )
    preprocessing: str | None = Field(
        None,
        description="JSON, or a file with it, whose fields replace those of the weights: resize, crop, mean, "
        'std, interpolation; for example {"resize": 256, "crop": 224}.',
    )
    weights_sha256: option_types.SHA256Digits = Field(
        None,
        description="SHA-256 of the file with the weights, or its first 8 digits or more; another file is "
        "rejected.",
    )
    device: option_types.DeviceName = Field(
        "auto",
        description="Device: auto, cpu, mps, cuda or cuda:N; several are separated by commas "
        "(cuda:0,cuda:1).",
    )
    streams_per_device: option_types.StreamsPerDevice = Field(
        None,
        description="Batches that run concurrently on each device; by default 2 on a GPU, and on a CPU 1 "
        "with torch or OpenVINO's recommendation with openvino.",
    )
    runtime: option_types.RuntimeName = Field(
        "auto",
        description="Library that runs the network; auto is openvino on x86 CPUs if it is installed, else "
        "torch, and for an ONNX file openvino on CPUs, else onnxruntime.",
    )
    precision: option_types.PrecisionName = Field(
        "auto",
        description="Number format of the network; auto is the fastest one that does not reduce accuracy.",
    )

    compile: bool = Field(
        False, description="Compile the network with torch.compile; on a CPU this needs a C++ compiler."
    )
    cuda_graphs: bool = Field(True, description="Run the network as CUDA graphs on an NVIDIA GPU.")

    max_batch: option_types.MaxBatch = Field(
        None,
        description="Maximum batch size; by default 32, or less on a CPU that a few images keep busy. The "
        "service uses less if a batch does not fit into memory.",
    )
    max_wait_ms: option_types.MaxWaitMs = Field(
        0.0,
        description="Time to wait for more images before a batch starts, counted from its oldest image.",
    )
    max_concurrency: option_types.MaxConcurrency = Field(
        None,
        description="Number of requests that are read, decoded or run at the same time; further ones wait, "
        "unread. By default 256, or three batches for each runtime if that is more.",
    )
    max_queue_wait_s: option_types.MaxQueueWaitS = Field(
        20.0,
        description="Maximum estimated time until a request is finished; further ones are rejected with 429.",
    )
    max_queue: option_types.MaxQueue = Field(
        None,
        description="Maximum number of images in the queue; by default only their wait is limited.",
    )
    request_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Time to respond, without that to receive the request body; then 504.",
    )
    read_timeout_s: float = Field(
        30.0, gt=0, description="Time to receive a complete request from the client; then 408."
    )
    drain_timeout_s: float = Field(
        25.0, ge=4, description="Time to finish accepted requests after SIGTERM; the rest are then aborted."
    )
    stall_timeout_s: float = Field(
        60.0,
        gt=0,
        description="Time of a batch, or to decode a JPEG, after which /healthz fails; after twice this time "
        "the process exits.",
    )

    max_connections: int = Field(
        16_384,
        ge=1,
        description="Maximum number of open connections; a new one beyond it closes the longest idle one.",
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Time to receive the request headers from the client; then 408."
    )
    half_close_s: float = Field(
        0.5,
        ge=0,
        description="Time after a request in which a client may stop sending and still get its response; "
        "later, this is a disconnect, which cancels the request.",
    )
    upload_memory_mb: float = Field(
        1000.0,
        gt=0,
        description="Memory for all uploads together, in MB (10^6 bytes); more are rejected with 429.",
    )
    max_upload_mb: float = Field(
        20.0, gt=0, description="Maximum request body, in MB (10^6 bytes), and at most the upload memory."
    )
    max_megapixels: float = Field(50.0, gt=0, description="Maximum image size in megapixels (10^6).")
    max_images_per_request: int = Field(64, ge=1, description="Maximum number of images in a request.")
    top_k: int = Field(5, ge=1, description="Number of classes in a response if the request does not set it.")
    bench_max_images: int = Field(
        4096, ge=1, description="Maximum number of images that one /bench request may run on the device."
    )

    api_keys: SecretStr | None = Field(
        None,
        description="Comma-separated API keys. If set, every endpoint except the health probes and the two "
        "pages requires one. Format: KEY [scope ...] [N/s] [name=NAME] [priority=bulk] [prediction_log=off]; "
        "without scopes a key grants everything except admin. The access log has the name. With "
        "priority=bulk, all requests of the key are bulk; with prediction_log=off, the prediction log has "
        "none of them.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with API keys, one per line, in the format of RESNET_SERVICE_API_KEYS; # starts a "
        "comment.",
    )
    public_scopes: str = Field(
        "",
        description="Comma-separated scopes that need no API key: predict, explain, metrics, bench.",
    )
    api_docs: bool = Field(True, description="Serve /docs and /openapi.json, which need no API key.")
    web_page: bool = Field(True, description="Serve the page at /, which needs no API key.")
    rate_limit: float | None = Field(
        None,
        gt=0,
        description="Requests per second for each API key that does not set its own rate; then 429.",
    )
    cors_origins: Annotated[str, AfterValidator(normalize_origins)] = Field(
        "", description="Comma-separated origins that browsers may call the API from; * for all."
    )

    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=160)] = Field(
        "auto",
        description="Processes that handle HTTP and decode, in front of the one with the model; 0 is one "
        "process for all, auto is 0 on up to four cores without a GPU.",
    )
    decode_threads: int | None = Field(
        None,
        ge=1,
        description="Number of threads that decode images, over all processes; by default one per CPU core.",
    )
    sandbox_processes: int | None = Field(
        None,
        ge=1,
        description="Processes that decode images other than JPEG, over all workers; by default one per CPU "
        "core, at most 8, and at most as many as fit in half of the free memory.",
    )
    sandbox_memory_mb: float = Field(
        1000, ge=100, description="Memory limit of each of these processes, in MB (10^6 bytes)."
    )
    sandbox_timeout_s: float = Field(10, gt=0, description="Time to decode one such image; then 413.")
    model_threads: option_types.ModelThreads = Field(
        None,
        description="Number of CPU threads that run the network; by default the runtime decides.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of the messages that are logged."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Log format; auto is console on a terminal and json otherwise."
    )
    access_log: bool = Field(True, description="Log one line per request.")
    access_log_probes: bool = Field(
        False, description="Log requests of the health probes and of /metrics as well."
    )
    prediction_classes: int = Field(
        100,
        ge=0,
        description="Classes with series of their own in inference_predictions_total: those of the baseline, "
        "then the first that are predicted.",
    )
    prediction_baseline: Path | None = Field(
        None,
        description="File with the usual predictions, written by `resnet-service baseline`, for an alert.",
    )
    prediction_log: option_types.PredictionLog = ""
    prediction_log_share: option_types.PredictionLogShare = 1.0
    prediction_log_below: option_types.PredictionLogBelow = None
    prediction_log_images: option_types.PredictionLogImages = False
    prediction_log_rate: option_types.PredictionLogRate = 100.0
    prediction_log_interval_s: option_types.PredictionLogIntervalS = 60.0
    prediction_log_max_mb: option_types.PredictionLogMaxMB = 1000.0
    prediction_log_days: option_types.PredictionLogDays = 30.0
    traces_url: Annotated[str, AfterValidator(check_http_url)] | None = Field(
        None,
        description="OpenTelemetry collector that receives spans (OTLP over HTTP), for example "
        "http://localhost:4318/v1/traces; needs the extra 'traces'.",
    )

    @property
    def max_body_bytes(self) -> int:
        """The largest request body: a larger one could never be held in the upload memory."""
        return int(min(self.max_upload_mb, self.upload_memory_mb) * 1e6)

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown_variables(cls, values: Any) -> Any:
        """Raise ValidationError for misspelled variables, which pydantic would ignore."""
        others = (PAGE_URL_VARIABLE, PAGE_API_KEY_VARIABLE)
        environment.reject_unknown_variables(cls.__name__, cls.model_fields.keys(), others)
        return values

    _lower = field_validator("workers", "log_level", "log_format", "public_scopes", mode="before")(
        option_types.lower_case
    )
