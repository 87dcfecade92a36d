"""Events out of changes: what an insert, an update, a delete, a truncation and a new set of columns are in the log."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from outbox.capture import names, registered
from outbox.capture.derived import avro
from outbox.capture.form import Columns, Form, form
from outbox.capture.registered import Captured
from outbox.capture.table import Described, type_names
from outbox.capture.values import Types
from outbox.capture.writer import DELETED, Pending, Writer
from outbox.database import Connection
from outbox.logs import logger
from outbox.relay.pgoutput import UNCHANGED, Begin, Decoded, Delete, Insert, Relation, Row, Truncate, Update

log = logger("outbox.capture")

EPOCH_UNIX_US: Final = 946_684_800_000_000
"""2000-01-01, where PostgreSQL's clock begins."""


@dataclass(slots=True)
class Place:
    """Where a change stands in the source: its transaction's commit, and how many of its changes came before."""

    lsn: int
    at_us: int
    ordinal: int = 0

    def fields(self) -> dict[str, int]:
        return {"lsn": self.lsn, "ordinal": self.ordinal, "at_us": self.at_us}


@dataclass(slots=True)
class Changes:
    """Turns one connection's changes into events. ``source`` is asked about types; ``origin`` names source, capture
    and slot in the events' ids. Changes of tables that are not known, or not yet read from a snapshot, are left out."""

    writer: Writer
    source: Connection
    origin: str
    tables: dict[int, Captured]
    types: Types = field(init=False)
    again: bool = False
    """Whether a table's columns have changed, so that all its rows must be looked at again."""
    _forms: dict[int, tuple[Relation, Form | None]] = field(default_factory=dict)
    _place: Place = field(default_factory=lambda: Place(0, 0))

    def __post_init__(self) -> None:
        self.types = Types(self.source)

    def begin(self, begin: Begin) -> None:
        """A transaction begins."""
        self._place = Place(begin.lsn, begin.at_us + EPOCH_UNIX_US)

    def take(self, change: Decoded, size: int) -> None:
        """One message of the transaction, of ``size`` bytes."""
        if isinstance(change, Insert | Update | Delete):
            known = self._form(change.relation)
            if known is not None:
                self._row(known, change, size)
        elif isinstance(change, Truncate):
            for relation in change.relations:
                self._truncate(relation)

    def _row(self, known: Form, change: Insert | Update | Delete, size: int) -> None:
        if isinstance(change, Insert):
            self._put("row.inserted", known, change.new, size)
        elif isinstance(change, Delete):
            self._delete(known, change.old, size)
        else:
            self._update(known, change, size)

    def _update(self, known: Form, update: Update, size: int) -> None:
        """A row that has another key from now on is gone from its old stream and comes to be in the new one."""
        old, new = update.old, update.new
        if old is not None:  # the old row, or its key alone: it holds what the new one leaves out, a large key as well
            pairs = zip(old, new, strict=True)
            new = tuple([was if now is UNCHANGED and was is not None else now for was, now in pairs])
        if old is None or known.key_of(old) == known.key_of(new):
            self._put("row.updated", known, new, size)
            return
        before = known.stream(old)
        kept = self._left_out(known, before, new)
        self._delete(known, old, size)
        self._put("row.inserted", known, new, size, kept)

    def _left_out(self, known: Form, stream: str, new: Row) -> Columns:
        """What the new row leaves out as unchanged, from the log's state of the stream it leaves."""
        holes = known.holes(new)
        if not holes:
            return {}
        self.writer.flush()
        state = self.writer.state(stream, holes)
        return {name: state[name] for name in holes}

    def _put(self, type_: str, known: Form, row: Row, size: int, kept: Mapping[str, Any] | None = None) -> None:
        stream = known.stream(row)
        columns = known.values(row)
        holes: tuple[str, ...] = ()
        if kept:
            columns |= kept
        elif len(columns) < len(known.columns):
            holes = known.holes(row)
        data = {"table": known.table, "shape": known.shape, "columns": columns}
        self._add(stream, type_, data, size, holes)

    def _delete(self, known: Form, row: Row, size: int) -> None:
        self._add(known.stream(row), DELETED, {"table": known.table, "key": known.key_values(row)}, size)

    def _truncate(self, relation: Relation) -> None:
        """Each row that the log has is gone; the source does not name them."""
        known = self._form(relation)
        if known is None:
            return
        self._place.ordinal += 1
        gone(self.writer, known, self._place.fields(), self.origin, lambda streams: streams)

    def _add(self, stream: str, type_: str, data: dict[str, Any], size: int, holes: tuple[str, ...] = ()) -> None:
        self._place.ordinal += 1
        id_ = names.change_id(self.origin, self._place.lsn, self._place.ordinal)
        self.writer.add(Pending(stream, type_, {**data, **self._place.fields()}, id_, holes), size)

    # ------------------------------------------------------------- columns

    def _form(self, relation: Relation) -> Form | None:
        found = self._forms.get(relation.id)
        if found is None or found[0] is not relation:
            found = self._forms[relation.id] = (relation, self._formed(relation))
        return found[1]

    def _formed(self, relation: Relation) -> Form | None:
        captured = self.tables.get(relation.id)
        if captured is None or captured.state == "new":
            return None
        flagged = {column.name for column in relation.columns if column.key}
        if not set(captured.key) <= set(relation.names) or (relation.identity != "f" and flagged != set(captured.key)):
            raise registered.key_changed(captured.name, captured.key, sorted(flagged))
        oids = [column.type_oid for column in relation.columns]
        described = tuple(
            zip(relation.names, type_names(self.source, oids, [c.type_modifier for c in relation.columns]), strict=True)
        )
        if described != captured.columns:
            captured = self._redescribed(captured, described, oids)
        converters = self.types.converters(oids)
        return form(captured.category, captured.name, captured.shape, relation.names, converters, captured.key)

    def _redescribed(self, captured: Captured, described: Described, oids: list[int]) -> Captured:
        after = describe(self.writer, self.types, self.origin, captured, described, oids)
        registered.set_state(self.writer.connection, self.writer.standing.name, [captured.category], "changed")
        self.again = True
        self.tables[captured.relation] = after
        log.info("columns have changed", table=captured.name, shape=after.shape)
        return after


def gone(
    writer: Writer, known: Form, place: Mapping[str, int], origin: str, is_gone: Callable[[list[str]], Container[str]]
) -> None:
    """Append the deletion of the rows that the log has and the table has not.

    ``is_gone``: those of a page of streams. A row from a time when the table had another key may lack this one's
    columns: it is known by its stream.
    """
    key = [known.columns[at] for at in known.key]
    for page in writer.live(known.category):
        chosen = is_gone(list(page))
        for stream, columns in page.items():
            if stream in chosen:
                data = {"table": known.table, "key": {n: columns[n] for n in key if n in columns}, **place}
                id_ = names.member_id(origin, place["lsn"], place["ordinal"], stream)
                writer.add(Pending(stream, DELETED, data, id_), len(stream))


def describe(
    writer: Writer, types: Types, origin: str, captured: Captured, described: Described, oids: list[int]
) -> Captured:
    """Append what the table's columns are from now on, and remember it in the same transaction."""
    writer.begin()
    shape = writer.version(captured.category) + 1
    data = {
        "table": captured.name,
        "key": list(captured.key),
        "columns": [{"name": name, "type": type_} for name, type_ in described],
        "avro": avro(captured.category, described, [types.avro(oid) for oid in oids]),
    }
    id_ = names.description_id(origin, captured.category, shape)
    writer.add(Pending(captured.category, "table.described", data, id_), len(data["avro"]))
    registered.describe(writer.connection, captured.category, described, shape)
    return replace(captured, columns=described, shape=shape)
