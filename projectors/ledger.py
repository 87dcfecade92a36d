"""What projectors remember in PostgreSQL: generations, checkpoints, dead letters and their own health.

Every function is one statement or one transaction. Names follow the tables of 0004_read_side.sql.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from outbox.broker.protocol import TopicPartition
from outbox.database import Connection

GenerationState = Literal["building", "serving", "retired"]

_SAVE: Final = """
INSERT INTO outbox.checkpoint AS c (projector, generation, topic, partition, "offset", incarnation)
SELECT %(projector)s, %(generation)s, t, p, o, i
FROM unnest(%(topics)s::text[], %(partitions)s::int[], %(offsets)s::bigint[], %(incarnations)s::text[])
    AS r (t, p, o, i)
ON CONFLICT (projector, generation, topic, partition) DO UPDATE
SET "offset" = excluded."offset", incarnation = coalesce(excluded.incarnation, c.incarnation), at = clock_timestamp()
WHERE c."offset" < excluded."offset" AND coalesce(c.incarnation = excluded.incarnation, true)
"""
_START: Final = """
INSERT INTO outbox.checkpoint (projector, generation, topic, partition, "offset")
SELECT %(projector)s, %(generation)s, topic, partition, "offset" + 1
FROM outbox.published WHERE topic = ANY (%(topics)s)
"""
_LAG: Final = """
SELECT coalesce(sum(p."offset" + 1 - coalesce(c."offset", 0)), 0)
FROM outbox.published p LEFT JOIN outbox.checkpoint c
  ON c.topic = p.topic AND c.partition = p.partition AND c.projector = %(projector)s AND c.generation = %(generation)s
WHERE p.topic = ANY (%(topics)s) AND p."offset" + 1 > coalesce(c."offset", 0)
"""
# At once or not at all: who waits here while others write several rows may be waited for in turn.
_HOLD: Final = "SELECT generation FROM outbox.generation WHERE projector = %s AND state = 'serving' FOR UPDATE NOWAIT"
_HOLD_CHECKPOINTS: Final = "SELECT FROM outbox.checkpoint WHERE projector = %s AND generation = %s FOR UPDATE NOWAIT"
_SHORT: Final = """
SELECT EXISTS (
    SELECT FROM outbox.generation g
    JOIN outbox.checkpoint s USING (projector, generation)
    JOIN outbox.published p USING (topic, partition)
    LEFT JOIN outbox.checkpoint c
      ON c.projector = s.projector AND c.generation = %(generation)s AND c.topic = s.topic AND c.partition = s.partition
    WHERE g.projector = %(projector)s AND g.state = 'serving' AND g.generation <> %(generation)s
      AND p.topic = ANY (%(topics)s) AND coalesce(c."offset", 0) < least(s."offset", p."offset" + 1))
"""
# The order of switches tells which generation is kept: it must be theirs though the database's clock went back.
_CHANGED: Final = """
changed_at = greatest(clock_timestamp(),
    (SELECT max(changed_at) + interval '1 microsecond' FROM outbox.generation WHERE projector = %(projector)s))
"""
_RETIRE: Final = f"""
UPDATE outbox.generation SET state = 'retired', {_CHANGED}
WHERE projector = %(projector)s AND state = 'serving' AND generation <> %(generation)s
"""
_SERVE: Final = f"""
UPDATE outbox.generation SET state = 'serving', {_CHANGED}
WHERE projector = %(projector)s AND generation = %(generation)s
"""
HALTED_MS: Final = 30_000
"""How long the server lets a switch stand still that holds up who feeds the generation before."""
KEY_LENGTH_MAX: Final = 500
"""Of a message that is no event: keys are in an index, which holds 2,700 bytes of them."""
_PARK: Final = """
INSERT INTO outbox.dead_letter AS d (projector, generation, stream, version, type, error, retry)
VALUES (%s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (projector, generation, stream) DO UPDATE
SET version = excluded.version, type = excluded.type, error = excluded.error, attempts = d.attempts + 1,
    retry = excluded.retry, at = clock_timestamp()
"""
_STRAY: Final = """
INSERT INTO outbox.dead_letter (projector, generation, stream, version, type, error) VALUES (%s, %s, %s, 0, '', %s)
ON CONFLICT DO NOTHING
"""
_HEALTH: Final = """
INSERT INTO outbox.projector (projector, store, health) VALUES (%s, %s, %s)
ON CONFLICT (projector) DO UPDATE SET store = excluded.store, health = excluded.health, at = clock_timestamp()
"""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of a projector's records. ``progress``: the last stream that a build has loaded.

    ``age_s``: seconds since its state or progress last changed, by the database's clock. ``store``: the one that it was
    built in; None if that is not known, since an earlier release has made it (:mod:`projectors.placement`).
    """

    name: str
    state: GenerationState
    progress: str | None
    records: int
    age_s: float
    store: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A parked stream: ``version`` is its first event that is not applied.

    ``type`` is that event's, or "" if no single event is to blame: the store refuses a record. Version 0: a
    message that is no event came under this key. It is written down and holds up nothing.
    """

    projector: str
    generation: str
    stream: str
    version: int
    type: str
    error: str
    attempts: int


# ------------------------------------------------------------- generations


def generations(connection: Connection, projector: str) -> list[Generation]:
    """All generations, the one that changed last at the end."""
    rows = connection.execute(
        "SELECT generation, state, progress, records, extract(epoch FROM clock_timestamp() - changed_at)::float8, store"
        " FROM outbox.generation WHERE projector = %s ORDER BY changed_at",
        [projector],
    )
    return [Generation(*row) for row in rows]


def serving(connection: Connection, projector: str) -> str | None:
    """The generation that serves, if one does."""
    row = connection.execute(
        "SELECT generation FROM outbox.generation WHERE projector = %s AND state = 'serving'", [projector]
    ).fetchone()
    return row[0] if row else None


def begin_generation(
    connection: Connection, projector: str, generation: str, topics: Sequence[str], store: str | None = None
) -> None:
    """Write down a new generation and where its catch-up begins: behind what is published now.

    Both in one transaction, before any of the log is read: so what a later read of the log does not see
    is published behind these offsets.
    """
    with connection.transaction():
        connection.execute(
            "INSERT INTO outbox.generation (projector, generation, state, store) VALUES (%s, %s, 'building', %s)",
            [projector, generation, store],
        )
        connection.execute(_START, {"projector": projector, "generation": generation, "topics": list(topics)})


def note_progress(connection: Connection, projector: str, generation: str, stream: str, records: int) -> None:
    """A build has loaded every stream up to this one."""
    connection.execute(
        "UPDATE outbox.generation SET progress = %s, records = %s, changed_at = clock_timestamp()"
        " WHERE projector = %s AND generation = %s",
        [stream, records, projector, generation],
    )


def forget_progress(connection: Connection, projector: str, generation: str) -> None:
    """Nothing that a build has loaded is there any more. It is no younger for that."""
    connection.execute(
        "UPDATE outbox.generation SET progress = NULL, records = 0 WHERE projector = %s AND generation = %s",
        [projector, generation],
    )


def is_short(connection: Connection, projector: str, generation: str, topics: Sequence[str]) -> bool:
    """Whether the generation lacks something that somebody may have waited for in the one that serves."""
    row = connection.execute(
        _SHORT, {"projector": projector, "generation": generation, "topics": list(topics)}
    ).fetchone()
    return bool(row and row[0])


def switch_generation(
    connection: Connection, projector: str, generation: str, held: Callable[[], None] | None = None
) -> None:
    """Let ``generation`` serve, in one transaction; the one that served is kept as retired.

    ``held`` is called in it while the checkpoints of the one that served stand still; if it raises, nothing is
    switched. With it this raises ``psycopg.errors.LockNotAvailable`` if they are being written just now.
    """
    with connection.transaction():
        if held is not None:
            connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {HALTED_MS}")
            serves = connection.execute(_HOLD, [projector]).fetchone()
            if serves is not None:
                connection.execute(_HOLD_CHECKPOINTS, [projector, serves[0]])
            held()
        names = {"projector": projector, "generation": generation}
        connection.execute(_RETIRE, names)
        connection.execute(_SERVE, names)


def forget_generation(connection: Connection, projector: str, generation: str) -> None:
    """Remove a generation and, by the tables' references, all that was remembered of it."""
    connection.execute(
        "DELETE FROM outbox.generation WHERE projector = %s AND generation = %s", [projector, generation]
    )


# ------------------------------------------------------------- checkpoints


def checkpoints(connection: Connection, projector: str, generation: str) -> dict[TopicPartition, int]:
    """The next offset to apply, by partition."""
    rows = connection.execute(
        'SELECT topic, partition, "offset" FROM outbox.checkpoint WHERE projector = %s AND generation = %s',
        [projector, generation],
    )
    return {TopicPartition(t, p): o for t, p, o in rows}


def save_checkpoints(
    connection: Connection,
    projector: str,
    generation: str,
    offsets: Mapping[TopicPartition, int],
    incarnations: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Everything below these offsets is applied. A checkpoint never goes back.

    ``incarnations``: of the topics, as far as known. One that was made again is another topic: a member that has
    not noticed yet writes nothing.
    """
    places = sorted(offsets)  # members that write some of the same rows lock them in one order
    connection.execute(
        _SAVE,
        {
            "projector": projector,
            "generation": generation,
            "topics": [tp.topic for tp in places],
            "partitions": [tp.partition for tp in places],
            "offsets": [offsets[tp] for tp in places],
            "incarnations": [incarnations.get(tp.topic) for tp in places],
        },
    )


def lag(connection: Connection, projector: str, generation: str, topics: Sequence[str]) -> int:
    """Messages published but not yet applied."""
    row = connection.execute(
        _LAG, {"projector": projector, "generation": generation, "topics": list(topics)}
    ).fetchone()
    return int(row[0]) if row else 0


def is_relayed(connection: Connection) -> bool:
    """Whether a relay leads now."""
    row = connection.execute("SELECT EXISTS (SELECT FROM outbox.lease WHERE expires_at > clock_timestamp())").fetchone()
    return bool(row and row[0])


# ------------------------------------------------------------ dead letters


def park(connection: Connection, letter: DeadLetter, *, retry: bool = False) -> None:
    """Write a dead letter down, or that trying it again has failed. ``retry``: and that it is to be tried once more."""
    error = _plain(letter.error)[:2_000]
    connection.execute(
        _PARK, [letter.projector, letter.generation, letter.stream, letter.version, letter.type, error, retry]
    )


def dead_letters(
    connection: Connection, projector: str | None = None, generation: str | None = None
) -> list[DeadLetter]:
    """The dead letters, of all projectors or of one."""
    rows = connection.execute(
        "SELECT projector, generation, stream, version, type, error, attempts FROM outbox.dead_letter"
        " WHERE (%(p)s::text IS NULL OR projector = %(p)s) AND (%(g)s::text IS NULL OR generation = %(g)s)"
        " ORDER BY at",
        {"p": projector, "g": generation},
    )
    return [DeadLetter(*row) for row in rows]


def note_stray(connection: Connection, projector: str, generation: str, key: str, error: str) -> None:
    """Write down that a message under this key is no event; once a key, and never over a parked stream."""
    connection.execute(_STRAY, [projector, generation, _plain(key)[:KEY_LENGTH_MAX], _plain(error)[:2_000]])


def parked(connection: Connection, projector: str, generation: str) -> set[str]:
    """The streams that are parked."""
    rows = connection.execute(
        "SELECT stream FROM outbox.dead_letter WHERE projector = %s AND generation = %s AND version > 0",
        [projector, generation],
    )
    return {stream for (stream,) in rows}


def hold_parked(connection: Connection, projector: str, generation: str, streams: Iterable[str]) -> set[str]:
    """Those of the streams that are parked, and stay so until the caller's transaction ends.

    Waits for another process that is just trying one of them again.
    """
    rows = connection.execute(
        "SELECT stream FROM outbox.dead_letter WHERE projector = %s AND generation = %s AND version > 0"
        " AND stream = ANY (%s) ORDER BY stream FOR SHARE",
        [projector, generation, sorted(streams)],
    )
    return {stream for (stream,) in rows}


def ask_retry(connection: Connection, projector: str, streams: Iterable[str] | None = None) -> int:
    """Ask the projector to try its parked streams (None: all) again; it does so within a second."""
    return connection.execute(
        "UPDATE outbox.dead_letter SET retry = true WHERE projector = %(p)s"
        " AND (%(s)s::text[] IS NULL OR stream = ANY (%(s)s::text[]))",
        {"p": projector, "s": None if streams is None else list(streams)},
    ).rowcount


def take_retry(connection: Connection, projector: str, generation: str) -> str | None:
    """A stream that somebody asked to try again, held by the caller's transaction; None if nobody did.

    Those that another process is at are passed over.
    """
    row = connection.execute(
        "SELECT stream FROM outbox.dead_letter WHERE projector = %s AND generation = %s AND retry"
        " ORDER BY at LIMIT 1 FOR UPDATE SKIP LOCKED",
        [projector, generation],
    ).fetchone()
    return row[0] if row else None


def unpark(connection: Connection, projector: str, generation: str, stream: str) -> None:
    """The stream is applied; it is parked no longer."""
    connection.execute(
        "DELETE FROM outbox.dead_letter WHERE projector = %s AND generation = %s AND stream = %s",
        [projector, generation, stream],
    )


def unpark_behind(connection: Connection, projector: str, generation: str, stream: str) -> None:
    """Forget the dead letters of all streams behind this one: a build is about to fold them again."""
    connection.execute(
        "DELETE FROM outbox.dead_letter WHERE projector = %s AND generation = %s AND stream > %s",
        [projector, generation, stream],
    )


# ------------------------------------------------------------------ health


def note_health(connection: Connection, projector: str, store: str, health: str) -> None:
    """``health``: "ok", or in one line what is wrong."""
    connection.execute(_HEALTH, [projector, store, _plain(health)[:500]])


def _plain(text: str) -> str:
    """What others wrote, as PostgreSQL can hold it: with a NUL or what is not UTF-8 it would refuse the whole row."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
