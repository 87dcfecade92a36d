"""The relay loses nothing and inverts nothing, whatever order transactions begin, write and end in.

It is run over each engine, and over both in turn. The same storm is run over the cursor everybody writes first,
``seq > last``, which must fail: that is the proof that this test can.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial

import psycopg
import pytest

from outbox.database import Connection
from outbox.log.append import append, send
from outbox.log.as_sent import read_as_sent
from outbox.relay.cursor import Cursor
from outbox.relay.poll import Page
from outbox.relay.rows import COLUMNS, outbox_row
from outbox.relay.settings import RelaySettings
from tests.alongside import alongside
from tests.integration.appending import event
from tests.relaying import Recorder, drain, leading, step_until, without_slots

SEED = int(os.environ.get("OUTBOX_TEST_SEED", random.SystemRandom().randrange(2**32)))
WRITERS = 4
SECONDS = 5.0
SMALL = RelaySettings(page_min=7, page_max=64)
"""Small pages, so that windows of several pages and stops in the midst of them are common."""
CDC = replace(SMALL, engine="cdc")


class NaiveEngine:
    """``seq > last``, as it stands in many an outbox."""

    QUERY = (
        f"SELECT {COLUMNS} FROM outbox.outbox o LEFT JOIN outbox.event e USING (position)"
        " WHERE o.seq > %(last)s ORDER BY o.seq LIMIT %(limit)s"
    )

    def __init__(self, connection: Connection, prefix: str) -> None:
        read_as_sent(connection)
        self._connection, self._prefix = connection, prefix

    def read(self, cursor: Cursor, limit: int) -> Page:
        parameters = {"last": cursor.last, "limit": limit, "prefix": self._prefix}
        rows = [outbox_row(row) for row in self._connection.execute(self.QUERY, parameters, binary=True)]
        return Page(rows, Cursor(cursor.a, cursor.b, rows[-1].seq if rows else cursor.last))

    def written(self, cursor: Cursor) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class Storm:
    """Writers on a handful of shared streams; what each committed is what must come out.

    ``long_s``: how long the long transaction stays open; None: as long as the storm.
    """

    dsn: str
    seed: int
    long_s: float | None = None
    plain: list[list[str]] = field(default_factory=list)

    def raging(self) -> AbstractContextManager[None]:
        return alongside(*(partial(self._write, n) for n in range(WRITERS)), self._write_long)

    def _write(self, number: int, ended: threading.Event) -> None:
        dice = random.Random(self.seed * 31 + number)
        sent: list[str] = []
        self.plain.append(sent)
        with psycopg.connect(self.dsn) as connection:
            while not ended.is_set():
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

    def _write_long(self, ended: threading.Event) -> None:
        """One transaction that begins first and ends last, on a stream of its own."""
        with psycopg.connect(self.dsn) as connection:
            n, commit_at = 0, time.monotonic() + (self.long_s or 3600)
            while not ended.wait(0.1):
                append(connection, "long-1", event(), expected=n)
                n += 1
                if time.monotonic() > commit_at:
                    connection.commit()
                    commit_at = time.monotonic() + (self.long_s or 3600)

    def committed(self) -> list[tuple[str, int]]:
        with psycopg.connect(self.dsn) as connection:
            query = "SELECT stream, version FROM outbox.event ORDER BY stream, version"
            return connection.execute(query).fetchall()


def weather(
    dsn: str, seed: int, terms: Sequence[RelaySettings], engine=None, long_s: float | None = None
) -> tuple[Storm, Recorder]:
    """Run the storm with relays, of each of these settings in turn, that end at random moments, mostly in the midst
    of something."""
    storm, recorder, dice = Storm(dsn, seed, long_s), Recorder(), random.Random(seed)
    stream_first(dsn, recorder, terms)
    with storm.raging():
        until, n = time.monotonic() + SECONDS, 0
        while time.monotonic() < until:
            term(dsn, recorder, terms[n % len(terms)], engine, min(until, time.monotonic() + dice.random()))
            n += 1
    with leading(dsn, recorder, terms[-1], engine=engine) as leader:
        finish(leader, storm, recorder)
    return storm, recorder


def stream_first(dsn: str, recorder: Recorder, terms: Sequence[RelaySettings]) -> None:
    """A slot cannot be made while a transaction is open, and the storm's long one always is."""
    if terms[0].engine == "cdc":
        with leading(dsn, recorder, terms[0]) as leader:
            step_until(leader, lambda: leader._engine.engine._streaming)


def term(dsn: str, recorder: Recorder, settings: RelaySettings, engine, until: float) -> None:
    with leading(dsn, recorder, settings, engine=engine) as leader:
        while time.monotonic() < until:
            leader.step()


def finish(leader, storm: Storm, recorder: Recorder) -> None:
    """Publish what is left. What does not come in good time is left for the test to name."""
    committed, plain = storm.committed(), sum(map(len, storm.plain))
    deadline = time.monotonic() + 20

    def all_there() -> bool:
        sent = {m.value for m in recorder.messages if m.topic == "plain"}
        return (len(events(recorder)), len(sent)) >= (len(committed), plain)

    drain(leader)
    step_until(leader, lambda: all_there() or time.monotonic() > deadline or leader._settings.engine == "poll", 30)


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
@pytest.mark.parametrize(
    ("terms", "long_s"),
    [((SMALL,), None), ((CDC,), None), ((CDC, SMALL), 0.2)],
    ids=["poll", "cdc", "both in turn"],
)
def test_every_committed_event_is_published_in_the_order_of_its_stream(database, terms, long_s, round_):
    print(f"OUTBOX_TEST_SEED={SEED} round {round_}")
    with without_slots(database):
        storm, recorder = weather(database, SEED + round_, terms, long_s=long_s)
    check(storm, recorder)


def check(storm: Storm, recorder: Recorder) -> None:
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
    storm, recorder = weather(database, SEED, (SMALL,), NaiveEngine)
    lost = set(storm.committed()) - set(events(recorder))
    assert lost, "the storm is too mild to find a wrong cursor"
    assert any(stream.startswith("order") for stream, _ in lost), "only the long transaction was lost"
