"""Windows of the outbox: where each begins and ends, and what one poll reads."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import psycopg

from outbox.database import connected
from outbox.log.append import append, send
from outbox.relay.cursor import Snapshot
from outbox.relay.parking import BEHIND, Parking, discard
from outbox.relay.settings import RelaySettings
from tests.integration.appending import event
from tests.relaying import Recorder, drain, leading

SMALL = RelaySettings(page_min=10, page_max=10)


def test_a_large_window_goes_on_where_the_last_leader_stopped(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(95)])
    with leading(database, recorder, SMALL) as first:
        first.step()  # begins the window
        first.step()  # reads on with a cursor of the server's
    with leading(database, recorder, SMALL) as second:
        append(producer, "order-1", [event() for _ in range(5)])
        drain(second)
    assert recorder.versions("order-1") == list(range(1, 101)), "in order, and nothing twice"


def test_rows_of_a_transaction_open_at_the_start_of_a_window_come_in_a_later_one(database, producer, recorder):
    with psycopg.connect(database) as slow:
        append(slow, "slow-1", event())
        append(producer, "order-1", [event() for _ in range(15)])
        with leading(database, recorder, SMALL) as leader:
            leader.step()
            slow.commit()  # in the midst of a window that cannot see it
            append(producer, "order-1", [event() for _ in range(15)])
            drain(leader)
    assert recorder.versions("slow-1") == [1]
    assert recorder.versions("order-1") == list(range(1, 31))


def test_a_window_of_full_pages_exactly_ends(database, producer, recorder):
    append(producer, "order-1", [event() for _ in range(20)])
    with leading(database, recorder, SMALL) as leader:
        assert drain(leader) == 20
        append(producer, "order-1", event())
        assert drain(leader) == 1


def test_what_was_rolled_back_is_never_published(database, producer, recorder):
    with psycopg.connect(database) as other:
        append(other, "order-1", [event(), event()])
        other.rollback()
    append(producer, "order-1", event())
    with leading(database, recorder) as leader:
        assert drain(leader) == 1


def test_a_message_carries_the_whole_event(database, producer, recorder):
    from outbox.broker.protocol import Delivery
    from outbox.codec import default_registry
    from outbox.envelope import read_event
    from outbox.log.read import read_stream

    meta = {"correlation_id": "c", "traceparent": "00-ä", "more": {"x": [1]}}
    append(producer, "order-1", event("ä", meta=meta))
    send(producer, "plain.topic", "key", b"\x00\xff", {"h": "ü"})
    with leading(database, recorder) as leader:
        drain(leader)
    message, plain = recorder.messages
    delivery = Delivery(message.topic, 0, 0, message.key, message.value, dict(message.headers))
    (stood,) = read_stream(producer, "order-1", default_registry())
    assert read_event(delivery, default_registry()) == stood
    assert (message.topic, delivery.headers["correlation_id"]) == ("outbox.order", b"c")
    assert (plain.topic, plain.key, plain.value, plain.headers) == (
        "plain.topic",
        "key",
        b"\x00\xff",
        [("h", "ü".encode())],
    )


def test_the_map_of_what_is_published_moves_with_the_cursor(database, producer, recorder):
    token = append(producer, "order-1", [event() for _ in range(3)]).token
    send(producer, "t", "k", b"")
    with leading(database, recorder) as leader:
        drain(leader)
    rows = producer.execute('SELECT topic, "offset", horizon::text::bigint FROM outbox.published ORDER BY 1').fetchall()
    assert [(t, o) for t, o, _ in rows] == [("outbox.order", 2), ("t", 3)]
    assert all(horizon > token.xid for *_, horizon in rows)


def plan(connection, query, parameters):
    """The plan that is run once the statement is prepared: the generic one."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", query)))
    for n, name in enumerate(names, 1):
        query = query.replace(f"%({name})s", f"${n}")
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE p AS {query}")
    run = f"EXPLAIN (FORMAT JSON, ANALYZE, BUFFERS) EXECUTE p({', '.join(['%s'] * len(names))})"
    (document,) = psycopg.ClientCursor(connection).execute(run, [parameters[name] for name in names]).fetchone()
    nodes, heap = [], [document[0]["Plan"]]
    while heap:
        node = heap.pop()
        nodes.append(node)
        heap += node.get("Plans", [])
    return nodes


def test_a_poll_of_a_big_outbox_reads_only_what_is_new(database, producer):
    from outbox.relay.poll import _BEGIN, _CONTINUE, PLANNING

    producer.execute("INSERT INTO outbox.outbox (topic, key) SELECT 't', 'k' || n FROM generate_series(1, 300000) AS n")
    snapshot = Snapshot(producer.execute("SELECT pg_current_snapshot()::text").fetchone()[0])
    append(producer, "order-1", [event() for _ in range(5)])
    parameters = {
        "xmax": str(snapshot.xmax),
        "xmax_b": str(snapshot.xmax + 100),
        "in_progress": snapshot.in_progress,
        "limit": 200,
        "unlock": False,
        "last": 0,
        "prefix": "outbox",
        "b": f"{snapshot.xmax + 100}:{snapshot.xmax + 100}:",
    }
    with connected(database, **PLANNING) as reading:
        for query in (_BEGIN, _CONTINUE):
            nodes = plan(reading, query, parameters)
            assert not [n for n in nodes if n["Node Type"] == "Seq Scan"], json.dumps(nodes, indent=1)
            assert not [n for n in nodes if n["Node Type"] in ("Hash Join", "Merge Join")]
            assert nodes[0]["Shared Hit Blocks"] + nodes[0]["Shared Read Blocks"] < 200


def test_what_waits_behind_a_refused_row_is_not_read_to_see_whether_it_may_go_on(producer):
    with producer.transaction():
        producer.execute(
            "INSERT INTO outbox.parked (relay, topic, key, seq, reason) SELECT 'relay', 't', key, n,"
            " CASE WHEN n = 1 THEN 'too large' ELSE %s END FROM generate_series(1, 5000) n, unnest(ARRAY['a', 'b']) key",
            [BEHIND],
        )
        discard(producer, "t", "b", seq=1)
        producer.execute("ANALYZE outbox.parked")
        read = (
            "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'outbox.parked'::regclass"
        )
        (before,) = producer.execute(read).fetchone()
        assert Parking(producer, "relay", "outbox").due() == [("t", "b")]
        (after,) = producer.execute(read).fetchone()
    assert after - before < 100


def test_the_longer_it_takes_to_look_for_parked_keys_the_seldomer_it_is_done(database, producer, monkeypatch):
    recorder, now, looks = Recorder(), [1_000.0], []
    recorder.refuse = {"order-1"}
    append(producer, "order-1", event())
    with leading(database, recorder, SMALL) as leader:
        monkeypatch.setattr("outbox.relay.leader.time", SimpleNamespace(monotonic=lambda: now[0]))
        due = Parking.due

        def slow(self):
            looks.append(now[0])
            now[0] += 2.0
            return due(self)

        monkeypatch.setattr(Parking, "due", slow)
        for _ in range(30):
            leader.step()
            now[0] += 1.0
    assert len(looks) == 1
