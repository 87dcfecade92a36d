"""The relay loses nothing and inverts nothing, whatever order transactions begin, write and end in.

The same storm is run over the cursor everybody writes first, ``seq > last``, which must fail: that is the
proof that this test can.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import psycopg
import pytest

from outbox.database import Connection
from outbox.log.append import append, send
from outbox.relay.cursor import Cursor
from outbox.relay.poll import COLUMNS, Page, PollEngine, outbox_row
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, leading

SEED = int(os.environ.get("OUTBOX_TEST_SEED", random.SystemRandom().randrange(2**32)))
WRITERS = 4
SECONDS = 5.0
SMALL = RelaySettings(page_min=7, page_max=64)
"""Small pages, so that windows of several pages and stops in the midst of them are common."""


class NaiveEngine:
    """``seq > last``, as it stands in many an outbox."""

    QUERY = (
        f"SELECT {COLUMNS} FROM outbox.outbox o LEFT JOIN outbox.event e USING (position)"
        " WHERE o.seq > %s ORDER BY o.seq LIMIT %s"
    )

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection, self._prefix = connection, prefix

    def read(self, cursor: Cursor, limit: int) -> Page:
        found = self._connection.execute(self.QUERY, [cursor.last, limit], binary=True)
        rows = [outbox_row(self._prefix, row) for row in found]
        return Page(rows, Cursor(cursor.a, cursor.b, rows[-1].seq if rows else cursor.last))

    def close(self) -> None:
        pass


@dataclass
class Storm:
    """Writers on a handful of shared streams; what each committed is what must come out."""

    dsn: str
    seed: int
    ended: threading.Event = field(default_factory=threading.Event)
    plain: list[list[str]] = field(default_factory=list)

    def threads(self) -> list[threading.Thread]:
        writers = [threading.Thread(target=self._write, args=(n,)) for n in range(WRITERS)]
        return [*writers, threading.Thread(target=self._write_long)]

    def _write(self, number: int) -> None:
        dice = random.Random(self.seed * 31 + number)
        sent: list[str] = []
        self.plain.append(sent)
        with psycopg.connect(self.dsn) as connection:
            while not self.ended.is_set():
                pending = self._transaction(connection, dice, f"plain-{number}", len(sent))
                if dice.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
                    sent += pending

    def _transaction(self, connection: psycopg.Connection, dice: random.Random, key: str, count: int) -> list[str]:
        """Appends to one or several streams (in one order: no deadlocks), pausing between them."""
        pending = []
        for stream in sorted(dice.sample(range(8), dice.randint(1, 3))):
            append(connection, f"order-{stream}", [event() for _ in range(dice.randint(1, 4))])
            if dice.random() < 0.3:
                pending.append(f"{key}:{count + len(pending)}")
                send(connection, "plain", key, pending[-1].encode())
            if dice.random() < 0.3:
                time.sleep(dice.random() * 0.01)  # a transaction that takes its time, not a wait for something
        return pending

    def _write_long(self) -> None:
        """One transaction that begins first and ends last, on a stream of its own."""
        with psycopg.connect(self.dsn) as connection:
            n = 0
            while not self.ended.wait(0.1):
                append(connection, "long-1", event(), expected=n)
                n += 1

    def committed(self) -> list[tuple[str, int]]:
        with psycopg.connect(self.dsn) as connection:
            query = "SELECT stream, version FROM outbox.event ORDER BY stream, version"
            return connection.execute(query).fetchall()


def weather(dsn: str, seed: int, engine, restart: bool = True) -> tuple[Storm, Recorder]:
    """Run the storm with relays that end at random moments, mostly in the midst of a window."""
    storm, recorder, dice = Storm(dsn, seed), Recorder(), random.Random(seed)
    threads = storm.threads()
    for thread in threads:
        thread.start()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            term(dsn, recorder, engine, min(until, time.monotonic() + dice.random()))
    finally:
        storm.ended.set()
        for thread in threads:
            thread.join()
    with leading(dsn, recorder, SMALL, engine=engine) as leader:
        while leader.step():
            pass
    return storm, recorder


def term(dsn: str, recorder: Recorder, engine, until: float) -> None:
    with leading(dsn, recorder, SMALL, engine=engine) as leader:
        while time.monotonic() < until:
            leader.step()


def events(recorder: Recorder) -> list[tuple[str, int]]:
    """First occurrences, in the order of publication."""
    found = [(m.key, int(dict(m.headers)["version"])) for m in recorder.messages if m.topic != "plain"]
    return list(dict.fromkeys(found))


def inverted(recorder: Recorder) -> list[tuple[str, int]]:
    last: Counter[str] = Counter()
    wrong = []
    for stream, version in events(recorder):
        if version < last[stream]:
            wrong.append((stream, version))
        last[stream] = max(last[stream], version)
    return wrong


@pytest.mark.parametrize("round_", range(3))
def test_every_committed_event_is_published_in_the_order_of_its_stream(database, round_):
    print(f"OUTBOX_TEST_SEED={SEED} round {round_}")
    storm, recorder = weather(database, SEED + round_, PollEngine)
    committed = storm.committed()
    assert len(committed) > 200, "too little happened to show anything"
    assert max(v for s, v in committed if s == "long-1") > 10
    assert sorted(events(recorder)) == committed, "lost, or published though never committed"
    assert inverted(recorder) == []
    for sent in storm.plain:
        if sent:
            key = sent[0].partition(":")[0]
            got = [m.value.decode() for m in recorder.messages if m.key == key]
            assert list(dict.fromkeys(got)) == sent


def test_the_usual_cursor_loses_events_in_the_same_storm(database):
    print(f"OUTBOX_TEST_SEED={SEED}")
    storm, recorder = weather(database, SEED, NaiveEngine)
    lost = set(storm.committed()) - set(events(recorder))
    assert lost, "the storm is too mild to find a wrong cursor"
    assert any(stream.startswith("order") for stream, _ in lost), "only the long transaction was lost"
