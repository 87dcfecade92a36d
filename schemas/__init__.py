"""The built-in event schemas: one Avro file per event type and version.

A file is named ``<event type>.v<version>.avsc``. The package holds data only: reading, checking and
evolving schemas is :mod:`outbox.codec`'s work.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the built-in ``*.avsc`` files are."""

__all__ = ["FOLDER"]
