"""The log as ingest sees it, in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from outbox.codec import Registry
from outbox.database import Connection
from outbox.ingest.log import Known, Write
from outbox.log.append import append

_LAST: Final = """
SELECT DISTINCT ON (e.stream) e.stream, e.version, e.meta ->> 'digest', e.type = 'entity.deleted', e.meta ->> 'source'
FROM outbox.event e
"""
# The last event decides whose a stream is, so the source is compared behind DISTINCT ON, never inside it.
_OF_SOURCE: Final = f"""
SELECT * FROM ({_LAST} WHERE split_part(e.stream, '-', 1) IN ('python', 'text') ORDER BY e.stream, e.version DESC)
AS last (stream, version, digest, deleted, source) WHERE source = %(source)s
"""
_OF_STREAMS: Final = f"{_LAST} WHERE e.stream = ANY (%(streams)s) ORDER BY e.stream, e.version DESC"


class PostgresLog:
    """:class:`outbox.ingest.log.Log` on a connection in autocommit mode."""

    def __init__(self, connection: Connection, registry: Registry) -> None:
        self._connection = connection
        self._registry = registry

    def known(self, source: str) -> Iterable[Known]:
        return [Known(*row) for row in self._connection.execute(_OF_SOURCE, {"source": source})]

    def look(self, streams: Sequence[str]) -> Mapping[str, Known]:
        rows = self._connection.execute(_OF_STREAMS, {"streams": list(streams)})
        return {row[0]: Known(*row) for row in rows}

    def append(self, writes: Sequence[Write]) -> None:
        with self._connection.transaction():
            for write in writes:
                append(self._connection, write.stream, write.event, expected=write.expected, registry=self._registry)
