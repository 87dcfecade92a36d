"""The messages of PostgreSQL's logical replication, as :mod:`outbox.relay.pgoutput_decoder` gives them.

Source: PostgreSQL manual, "Logical Replication Message Formats" (protocol versions 1 and 2). Positions in the
write-ahead log (LSN) are plain integers here; times are microseconds since 2000-01-01 UTC; ``xid`` is the 32-bit id
of the (sub)transaction that made a change and is told only inside a stream block, else it is 0.

Messages of rows come by the hundred thousand a second, so they are tuples with names, and a row is a plain tuple.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias


class Unchanged(Enum):
    """A TOASTed value that an update left as it was: the server does not send it."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED

Value: TypeAlias = str | bytes | Unchanged | None
"""``str``: the type's text form; ``bytes``: its binary form (option ``binary``); None: null."""

Row: TypeAlias = tuple[Value, ...]
"""One value a column, in the order of :attr:`Relation.columns`."""


class Column(NamedTuple):
    """``key``: part of the replica identity. ``type_oid`` and ``type_modifier`` as in pg_attribute."""

    name: str
    type_oid: int
    type_modifier: int
    key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it was when the changes after this message were made."""

    id: int
    schema: str
    """``pg_catalog`` if the server left it empty."""
    name: str
    identity: str
    """``d`` default, ``n`` nothing, ``f`` all columns, ``i`` an index (pg_class.relreplident)."""
    columns: tuple[Column, ...]
    xid: int = field(default=0, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)


class Begin(NamedTuple):
    """A transaction that has committed follows, whole. ``lsn``: of its commit."""

    lsn: int
    at_us: int
    xid: int


class Commit(NamedTuple):
    """The end of what :class:`Begin` began; ``end_lsn`` is where the log goes on."""

    lsn: int
    end_lsn: int
    at_us: int


class Insert(NamedTuple):
    relation: Relation
    new: Row
    xid: int


class Update(NamedTuple):
    """``old``: None, or the old key (``old_is`` "K", other columns null) or the whole old row ("O")."""

    relation: Relation
    old: Row | None
    old_is: Literal["K", "O"] | None
    new: Row
    xid: int


class Delete(NamedTuple):
    """``old``: see :class:`Update`."""

    relation: Relation
    old: Row
    old_is: Literal["K", "O"]
    xid: int


class Truncate(NamedTuple):
    relations: tuple[Relation, ...]
    cascade: bool
    restart_identity: bool
    xid: int


class TypeName(NamedTuple):
    """Names a type that is not built in, before the relation that uses it."""

    id: int
    schema: str
    name: str
    xid: int


class Origin(NamedTuple):
    """The transaction came here from elsewhere (``pg_replication_origin``)."""

    lsn: int
    name: str


class Logical(NamedTuple):
    """What somebody wrote with ``pg_logical_emit_message`` (option ``messages``)."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes
    xid: int


class StreamStart(NamedTuple):
    """A block of changes of a transaction still in progress. ``first``: its first block."""

    xid: int
    first: bool


class StreamStop(NamedTuple):
    """The end of a block; others may follow, also of other transactions."""


class StreamCommit(NamedTuple):
    """A streamed transaction has committed."""

    xid: int
    lsn: int
    end_lsn: int
    at_us: int


class StreamAbort(NamedTuple):
    """A subtransaction of a streamed transaction was rolled back, or all of it (``subxid == xid``)."""

    xid: int
    subxid: int


Decoded: TypeAlias = (
    Begin
    | Commit
    | Relation
    | Insert
    | Update
    | Delete
    | Truncate
    | TypeName
    | Origin
    | Logical
    | StreamStart
    | StreamStop
    | StreamCommit
    | StreamAbort
)
