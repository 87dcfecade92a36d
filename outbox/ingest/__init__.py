"""Folders of Python and text as streams of the log: see :func:`~outbox.ingest.ingest.ingest`."""

from outbox.ingest.errors import IngestError, SourceError, UnreadableFile
from outbox.ingest.ingest import ingest
from outbox.ingest.log import Known, Log, Write
from outbox.ingest.options import Options
from outbox.ingest.report import Progress, Report
from outbox.ingest.scan import Failure

__all__ = [
    "Failure",
    "IngestError",
    "Known",
    "Log",
    "Options",
    "Progress",
    "Report",
    "SourceError",
    "UnreadableFile",
    "Write",
    "ingest",
]
