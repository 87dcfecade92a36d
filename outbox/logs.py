"""Where the log lines of the product's own processes go: standard error, never standard output."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(level: int) -> None:
    """structlog to standard error: people's lines on a terminal, JSON elsewhere."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_to_standard_error,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


def quiet_unless_configured() -> None:
    """For programs that use the product as a library: structlog's own default prints everything to standard
    output, which is the program's. What the program has configured stays."""
    if not structlog.is_configured():
        configure_logging(logging.WARNING)


def _to_standard_error(*_: object) -> structlog.PrintLogger:
    # Looked up at each line: whoever redirects standard error later is heeded.
    return structlog.PrintLogger(sys.stderr)
