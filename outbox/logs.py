"""Where the log lines of the product's own processes go: standard error, never standard output.

structlog takes longer to import than most commands take to run, and most log nothing: it is imported, and told
where the lines go, when the first module that logs is.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import structlog

_asked: list[int] = []
"""The level that was asked for before structlog was there."""
_settling: Final = threading.Lock()


def configure_logging(level: int) -> None:
    """structlog to standard error: people's lines on a terminal, JSON elsewhere."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    _asked[:] = [level]
    if "structlog" in sys.modules:
        settle()


def quiet_unless_configured() -> None:
    """For programs that use the product as a library: structlog's own default prints everything to standard
    output, which is the program's. What the program has configured stays."""
    import structlog

    if not structlog.is_configured():
        configure_logging(logging.WARNING)


def logger(name: str) -> Any:
    """structlog's logger of this name, for the module that logs under it."""
    import structlog

    settle()
    return structlog.get_logger(name)


def settle() -> None:
    """Do now what :func:`configure_logging` has put off; also for code of others that is about to be imported."""
    with _settling:
        while _asked:
            _configure(_asked.pop())


def _configure(level: int) -> None:
    import structlog

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


def _to_standard_error(*_: object) -> structlog.PrintLogger:
    import structlog

    # Looked up at each line: whoever redirects standard error later is heeded.
    return structlog.PrintLogger(sys.stderr)
