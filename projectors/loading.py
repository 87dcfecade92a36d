"""The load of a rebuild: the log into a new generation, stream by stream, last states only."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from outbox.database import Connection, connected
from outbox.errors import RecordsRefused
from projectors import ledger
from projectors.building import Progress
from projectors.folding import Failure
from projectors.ledger import Generation
from projectors.model import model
from projectors.pipeline import Plan, embedded
from projectors.record import Change
from projectors.session import Stations
from projectors.sinks.protocol import Sink
from projectors.skipping import Skipping

LOAD_BATCH: Final = 1_000
"""Changes in one write of the load: two are under way at most, so memory stays flat."""
FIRST_BATCH: Final = 250
"""In the first one, for which the store waits; each is twice the one before."""


class Load:
    """Writes in batches, one while the next is folded and embedded; goes on behind the last stream noted down."""

    def __init__(
        self,
        connection: Connection,
        plan: Plan,
        skipped: Skipping,
        stations: Stations,
        sink: Sink,
        generation: Generation,
        tell: Progress,
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._skipped = skipped
        self._stations = stations
        self._sink = sink
        self._generation = generation
        self._tell = tell
        self._streams = 0
        self._records = generation.records

    def run(self, stop: threading.Event) -> tuple[int, int]:
        """Returns the streams and records loaded."""
        batch: list[Change] = []
        writing: Future[None] | None = None
        stream, after, most = "", self._generation.progress or "", min(FIRST_BATCH, LOAD_BATCH)
        ledger.unpark_behind(self._connection, self._plan.name, self._generation.name, after)
        with connected(self._stations.dsn) as reading, ThreadPoolExecutor(1, "load") as writer:
            for modelled in model(reading, self._plan, self._stations.registry, after_stream=after):
                if stop.is_set():
                    break
                stream = modelled.stream
                self._streams += 1
                if modelled.failure is not None:
                    self._park(modelled.failure)
                batch += modelled.changes()
                if len(batch) >= most:
                    writing, batch = self._next(writer, writing, batch, stream), []
                    most = min(2 * most, LOAD_BATCH)
            if stream:
                self._next(writer, writing, batch, stream).result()
        return self._streams, self._records

    def _next(
        self, writer: ThreadPoolExecutor, writing: Future[None] | None, batch: Sequence[Change], stream: str
    ) -> Future[None]:
        """Write a batch once the one before it is written. Texts become vectors here and not in the writer's thread:
        meanwhile the store takes the batch before."""
        ready = embedded(batch, self._plan.embed)
        if writing is not None:
            writing.result()
        self._records += len(ready)
        return writer.submit(self._write, ready, stream, self._streams, self._records)

    def _write(self, batch: Sequence[Change], stream: str, streams: int, records: int) -> None:
        try:
            self._sink.apply(self._generation.name, batch)
        except RecordsRefused as error:
            for change in batch:
                if change.key in error.reasons:
                    self._park(Failure(change.stream, change.version, "", f"{change.key}: {error.reasons[change.key]}"))
        ledger.note_progress(self._connection, self._plan.name, self._generation.name, stream, records)
        self._tell("load", streams, records)

    def _park(self, failure: Failure) -> None:
        """What was given up meanwhile: whoever follows the generation once it serves tries the stream once more."""
        self._skipped.park(self._connection, self._plan.name, self._generation.name, failure)
