"""A table as its database's catalog has it now: what identifies its rows, which columns there are, and whether it can
be captured at all. Each refusal is one line that says what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import errors, sql

from outbox.capture.names import category
from outbox.database import Connection
from outbox.errors import SettingsError

Described = tuple[tuple[str, str], ...]
"""Name and type of each column, the type as PostgreSQL writes it."""

OWN_SCHEMA: Final = "outbox"
PARTITIONED: Final = "p"
GENERATED_SINCE: Final = 180_000
"""From PostgreSQL 18 on a publication can give stored generated columns; virtual ones never."""

_REGCLASS: Final = "SELECT to_regclass(%s)::oid::bigint"
_TABLE: Final = """
SELECT n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, c.relispartition,
       (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i
        CROSS JOIN unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, n)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
        WHERE i.indrelid = c.oid AND k.n <= i.indnkeyatts AND i.indimmediate
          AND CASE WHEN c.relreplident = 'i' THEN i.indisreplident ELSE i.indisprimary END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = %s::oid
"""
_COLUMNS: Final = """
SELECT a.attname, a.atttypid::bigint, format_type(a.atttypid, a.atttypmod)
FROM pg_attribute a WHERE a.attrelid = %s::oid AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = ANY (%s)
ORDER BY a.attnum
"""
_TREE: Final = "(c.oid = %(table)s::oid OR c.oid IN (SELECT relid FROM pg_partition_tree(%(table)s::oid::regclass)))"
_PARTITIONS: Final = f"""
SELECT string_agg(c.oid || '/' || c.relfilenode, ',' ORDER BY c.oid) FROM pg_class c WHERE {_TREE}
"""
# A changed row of such a partition is not in the write-ahead log, or PostgreSQL lets nobody change it once published.
_UNFIT: Final = """
SELECT c.relname FROM pg_partition_tree(%s::oid::regclass) p JOIN pg_class c ON c.oid = p.relid
WHERE p.isleaf AND (c.relkind = 'f' OR c.relpersistence <> 'p' OR c.relreplident = 'n') ORDER BY c.relname LIMIT 1
"""
_REWRITTEN: Final = f"""
SELECT EXISTS (SELECT FROM pg_class c WHERE {_TREE} AND c.relfilenode <> coalesce(pg_relation_filenode(c.oid), 0))
"""
_TYPE_NAMES: Final = """
SELECT coalesce(format_type(o, m), o::text) FROM unnest(%s::oid[], %s::int[]) WITH ORDINALITY AS t (o, m, n) ORDER BY n
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be captured. ``oids``: the columns' types. ``print`` changes when all rows must be looked at
    again, because they may have changed without a change of each being logged."""

    relation: int
    schema: str
    name: str
    kind: str
    key: tuple[str, ...]
    columns: Described
    oids: tuple[int, ...]
    print: str

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def category(self) -> str:
        """Of its rows' streams. Raises :class:`~outbox.errors.SettingsError` if its name cannot be one."""
        return category(self.schema, self.name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    @property
    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def only(self) -> sql.Composable:
        """The table without those that inherit from it, which are tables of their own; partitions are part of it."""
        return self.identifier if self.kind == PARTITIONED else sql.SQL("ONLY {}").format(self.identifier)


def find(connection: Connection, name: str) -> Table:
    """The table of this name, as SQL would find it. Raises :class:`~outbox.errors.SettingsError` if it cannot be
    captured."""
    try:
        row = connection.execute(_REGCLASS, [name]).fetchone()
    except (errors.InvalidName, errors.SyntaxError, errors.FeatureNotSupported) as error:
        raise SettingsError(f"{name!r} is not the name of a table: {_said(error)}") from error
    if row is None or row[0] is None:
        raise SettingsError(f"there is no table {name!r} in the source: give TABLE or SCHEMA.TABLE as SQL would")
    found = look(connection, row[0])
    if found is None:
        raise SettingsError(f"table {name!r} has just been dropped")
    found.category  # noqa: B018  # refused here if it cannot name streams
    return found


def look(connection: Connection, relation: int) -> Table | None:
    """The table with this oid; None if it was dropped. Raises as :func:`find`."""
    row = connection.execute(_TABLE, [relation]).fetchone()
    if row is None:
        return None
    schema, name, kind, persistence, identity, partition, key = row
    _refuse(f"{schema}.{name}", schema, kind, persistence, identity, partition, key)
    unfit = connection.execute(_UNFIT, [relation]).fetchone() if kind == PARTITIONED else None
    if unfit is not None:
        raise SettingsError(
            f"table {schema}.{name} cannot be captured: its partition {unfit[0]!r} is a foreign table, unlogged, or has"
            " REPLICA IDENTITY NOTHING, so its changes cannot be read from the write-ahead log: alter or detach it"
        )
    generated = ["", "s"] if connection.info.server_version >= GENERATED_SINCE else [""]
    columns = connection.execute(_COLUMNS, [relation, generated]).fetchall()
    described = tuple((column, type_) for column, _, type_ in columns)
    oids = tuple(oid for _, oid, _ in columns)
    missing = set(key) - {column for column, _ in described}
    if missing:
        raise SettingsError(
            f"table {schema}.{name} cannot be captured: {min(missing)!r} of its key is a generated column,"
            " which this PostgreSQL does not replicate"
        )
    return Table(relation, schema, name, kind, tuple(key), described, oids, _print(connection, relation, kind, columns))


def locked(connection: Connection, table: Table) -> bool:
    """Lock a table against being altered, renamed or dropped until the transaction ends. False if its name is not its
    own any more: ``table`` may be as an old snapshot has it, while names in statements are always today's."""
    try:
        connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS SHARE MODE").format(table.only))
    except (errors.UndefinedTable, errors.InvalidSchemaName):
        return False
    row = connection.execute(_REGCLASS, [table.identifier.as_string(connection)]).fetchone()
    return row is not None and row[0] == table.relation


def rewritten(connection: Connection, relation: int) -> bool:
    """Whether the table, which must be locked, was rewritten or truncated since the transaction's snapshot, which then
    sees it empty (PostgreSQL manual, 13.6 "Caveats")."""
    row = connection.execute(_REWRITTEN, {"table": relation}).fetchone()
    return row is not None and bool(row[0])


def type_names(connection: Connection, oids: Sequence[int], modifiers: Sequence[int]) -> list[str]:
    """Types as PostgreSQL writes them; one that was dropped since as its number."""
    rows = connection.execute(_TYPE_NAMES, [list(oids), list(modifiers)]).fetchall()
    return [name for (name,) in rows]


def _refuse(
    name: str, schema: str, kind: str, persistence: str, identity: str, partition: bool, key: list[str] | None
) -> None:
    """Raise the first thing that keeps a table from being captured."""
    reason = None
    if kind not in {"r", PARTITIONED}:
        reason = "it is no table (a view, a foreign table, a sequence or an index)"
    elif schema == OWN_SCHEMA or schema.startswith("pg_") or schema == "information_schema":
        reason = f"the schema {schema} is the system's or the product's own"
    elif persistence != "p":
        reason = (
            "it is unlogged or temporary, so its changes are not in the write-ahead log: ALTER TABLE ... SET LOGGED"
        )
    elif partition:
        reason = "it is a partition: capture the partitioned table, which all its changes appear as"
    elif identity == "n":
        reason = "it has REPLICA IDENTITY NOTHING: ALTER TABLE ... REPLICA IDENTITY DEFAULT"
    elif not key:
        reason = (
            "it has no primary key that is not DEFERRABLE, and nothing else says which row a change is of: add one, or"
            " ALTER TABLE ... REPLICA IDENTITY USING INDEX with a unique index of columns that are not null"
        )
    if reason:
        raise SettingsError(f"table {name} cannot be captured: {reason}")


def _print(connection: Connection, relation: int, kind: str, columns: Sequence[tuple[Any, ...]]) -> str:
    """Columns and types; of a partitioned table its partitions too: attaching, detaching and truncating one of them
    changes rows of which logical replication says nothing."""
    parts = [repr([tuple(column) for column in columns])]
    if kind == PARTITIONED:
        row = connection.execute(_PARTITIONS, {"table": relation}).fetchone()
        parts.append(str(row and row[0]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _said(error: Exception) -> str:
    return str(error).splitlines()[0]
