"""Log lines on standard error, as text for a console or as one JSON object per line."""

import logging
import sys
from typing import Any

import orjson
import structlog

from lewm_serve.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("lewm")


def configure_logs(settings: Settings) -> None:
    """Write the lines of structlog and of the standard library in one format to standard error.

    structlog writes its lines itself: through the standard library, the line of a request takes
    twice as long.
    """
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(_to_json)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)


def _to_json(line: dict[str, Any], **_options: object) -> str:
    return orjson.dumps(line, repr).decode()
