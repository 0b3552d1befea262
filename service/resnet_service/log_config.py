"""Configure logging with structlog: readable lines on a terminal, JSON otherwise.

Log lines of other libraries (uvicorn, torch) have the same format. Every line that is logged during a request
contains its request id.
"""

import logging
import sys
from collections.abc import Callable
from typing import Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

_UVICORN_CLIENT_LINES: Final = (
    "Invalid HTTP request",
    "Unsupported upgrade request",
    "No supported WebSocket library",
)
_STAGES: Final = ("wait", "read", "decode", "queue", "device")


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Drops lines that cannot be written, for example because a disk is full or a reader has ended.

    The service goes on: requests matter more than their log. `logging` would print a traceback, to nowhere.
    """

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.on_drop: Callable[[], None] = lambda: None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of `logging`
        """Count a line that could not be written; other errors are faults of the program."""
        if isinstance(sys.exc_info()[1], OSError):
            self.on_drop()
        else:
            super().handleError(record)


def count_dropped_lines(count: Callable[[], None]) -> None:
    """Call `count` for each log line from now on that cannot be written."""
    for handler in logging.root.handlers:
        if isinstance(handler, _StandardErrorHandler):
            handler.on_drop = count


def configure_logging(level: str = "info", style: Literal["auto", "json", "console"] = "auto") -> None:
    """Configure logging to standard error for the process; called once, at its start."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    final: list[Processor] = (
        [
            _shorten_access_line,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                sort_keys=False,
                pad_event_to=0,
                # Rich's traceback prints all local variables: slow for images, and it would leak API keys.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = _StandardErrorHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(level.upper())
    # Uvicorn's start and stop lines repeat those of `resnet_service.server.run`.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_not_of_a_client)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _is_not_of_a_client(record: logging.LogRecord) -> bool:
    """Return False for lines that each client can cause without a limit; `RejectionLog` replaces them."""
    return not str(record.msg).startswith(_UVICORN_CLIENT_LINES)


def _shorten_access_line(_: object, __: str, event: EventDict) -> EventDict:
    """Put status, route and duration of a request first, and keep its line within 120 columns.

    The path and the sizes are only in the JSON format.
    """
    if event.get("event") != "request" or "status" not in event:
        return event
    stages = [f"{stage} {event.pop(f'{stage}_ms'):.1f}" for stage in _STAGES if f"{stage}_ms" in event]
    short = {
        "timestamp": event["timestamp"],
        "event": f"{event['status']} {event['method']} {event['route']} {event['ms']:.1f} ms",
        **({"stages": ", ".join(stages)} if stages else {}),
    }
    kept = ("error", "client", "key", "request_id")
    return short | {name: event[name] for name in kept if name in event}
