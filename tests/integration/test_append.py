"""Appending through every kind of connection: the same claims for each."""

from __future__ import annotations

import uuid

import psycopg
import pytest

from outbox.errors import DatabaseError, DuplicateEvent, InvalidEvent, VersionConflict
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.log.bulk import bulk_append
from tests.integration.appending import KINDS, event, psycopg_plain


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture
def one(kind, module_database):
    """A connection of the kind, in a transaction."""
    with kind(module_database) as connection:
        yield connection


@pytest.fixture
def stream():
    return f"order-{uuid.uuid4()}"


@pytest.fixture
def look(module_database):
    """Asks what is committed, from outside."""
    with psycopg.connect(module_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS mine (name text PRIMARY KEY)")
        yield lambda query, *values: connection.execute(query, values).fetchall()


@pytest.fixture
def written(look):
    return lambda stream: look(
        "SELECT e.version, e.id, e.position FROM outbox.event e JOIN outbox.outbox USING (position)"
        " WHERE stream = %s ORDER BY outbox.seq",
        stream,
    )


def test_an_append_stands_in_the_log_and_in_the_outbox_once_committed(one, stream, written):
    events = [event("a"), event("b"), event("c")]
    answer = one.append(stream, events, expected="none")
    assert (answer.stream, answer.version, answer.repeated) == (stream, 3, False)
    assert answer.ids == tuple(e.id for e in events)
    assert written(stream) == []
    one.commit()
    assert written(stream) == list(zip((1, 2, 3), answer.ids, answer.positions, strict=True))


def test_what_was_given_comes_back(one, stream, look):
    meta = {"correlation_id": "äöü € 𝄞 \\u0000 % :name", "n": [1, None, {"x": 1.5}]}
    given = event("'; %s %(x)s :x $1 \\ \n 𝄞", meta=meta)
    one.append(stream, given)
    one.commit()
    ((type_, id_, data, got),) = look("SELECT type, id, data, meta FROM outbox.event WHERE stream = %s", stream)
    from outbox.codec import default_registry

    assert (type_, id_, got) == (given.type, given.id, meta)
    assert default_registry().decode(type_, data)["name"] == given.data["name"]


def test_the_token_names_the_transaction(one, stream):
    token = one.append(stream, event()).token
    assert one.sql("SELECT CAST(pg_current_xact_id() AS text)") == [(str(token),)]
    assert one.send("topic", "key", b"x") == token


@pytest.mark.parametrize(
    ("standing", "expected", "fits"),
    [
        (0, "none", True),
        (0, 0, True),
        (0, "any", True),
        (0, "exists", False),
        (0, 1, False),
        (2, "none", False),
        (2, 2, True),
        (2, "any", True),
        (2, "exists", True),
        (2, 1, False),
        (2, 3, False),
        (2, 2**62, False),
    ],
)
@pytest.mark.parametrize("size", [1, 2], ids=["one", "batch"])
def test_the_expected_version_decides(one, stream, written, standing, expected, fits, size):
    if standing:
        one.append(stream, [event() for _ in range(standing)])
    batch = [event() for _ in range(size)]
    if fits:
        assert one.append(stream, batch, expected=expected).version == standing + size
    else:
        with pytest.raises(VersionConflict) as caught:
            one.append(stream, batch, expected=expected)
        said = "none" if expected == 0 else str(expected)
        assert (caught.value.stream, caught.value.expected, caught.value.actual) == (stream, said, standing)
    one.commit()
    assert len(written(stream)) == standing + (size if fits else 0)


def test_a_conflict_leaves_the_transaction_usable_and_nothing_of_its_batch(one, stream, look, written):
    one.append(stream, event())
    one.sql(f"INSERT INTO mine VALUES ('before {stream}')")
    with pytest.raises(VersionConflict):
        one.append(stream, [event(), event()], expected=5)
    one.sql(f"INSERT INTO mine VALUES ('after {stream}')")
    one.append(stream, event(), expected=1)
    one.commit()
    assert [version for version, *_ in written(stream)] == [1, 2]
    assert len(look("SELECT FROM mine WHERE name IN (%s, %s)", f"before {stream}", f"after {stream}")) == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_id_that_stands_elsewhere_is_refused_with_its_whole_batch(one, stream, written, place):
    standing = event()
    one.append(f"{stream}-other", standing)
    batch = [event(), event(), event()]
    batch[place] = standing
    with pytest.raises(DuplicateEvent) as caught:
        one.append(stream, batch)
    assert caught.value.stream == stream
    one.append(stream, event(), expected="none")
    one.commit()
    assert len(written(stream)) == 1


def test_a_rollback_takes_everything_back(one, stream, look, written):
    one.append(stream, [event(), event()])
    one.sql(f"INSERT INTO mine VALUES ('{stream}')")
    one.rollback()
    assert written(stream) == []
    assert look("SELECT FROM mine WHERE name = %s", stream) == []
    assert one.append(stream, event(), expected="none").version == 1


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("expected", ["none", 0, "any"])
def test_the_same_events_again_give_the_same_answer_and_write_nothing(one, stream, written, size, expected):
    batch = [event() for _ in range(size)]
    first = one.append(stream, batch, expected=expected)
    one.commit()
    one.append(stream, event(), expected=size)
    one.commit()
    again = one.append(stream, batch, expected=expected)
    one.commit()
    assert again.repeated
    assert (again.positions, again.version) == (first.positions, first.version)
    assert again.token.xid >= first.token.xid
    assert len(written(stream)) == size + 1


def test_events_appended_apart_are_not_a_repetition(one, stream):
    a, b, between = event(), event(), event()
    for each in (a, between, b):
        one.append(stream, each)
    for batch in ([a, b], [between, a], [b, event()]):
        with pytest.raises(DuplicateEvent):
            one.append(stream, batch)
    with pytest.raises(DuplicateEvent):
        one.append(stream, between, expected="none")


def test_a_plain_message_goes_to_the_outbox_only(one, stream, look):
    payloads = [b"\x00\xff binary", b"", None]
    for payload in payloads:
        one.send("any.topic", stream, payload, {"a": "ä"})
    one.commit()
    rows = look("SELECT position, topic, headers, payload FROM outbox.outbox WHERE key = %s ORDER BY seq", stream)
    assert rows == [(None, "any.topic", {"a": "ä"}, payload) for payload in payloads]
    assert look("SELECT FROM outbox.event WHERE stream = %s", stream) == []


REFUSED = {
    "no events": ("s-1", [], {}),
    "unknown type": ("s-1", NewEvent("no.such", {}), {}),
    "missing field": ("s-1", NewEvent("entity.upserted", {"kind": "k"}), {}),
    "nul in data": ("s-1", event("a\x00b"), {}),
    "surrogate in data": ("s-1", event("\ud800"), {}),
    "nul in meta": ("s-1", event(meta={"a": ["\x00"]}), {}),
    "nul in a name of meta": ("s-1", event(meta={"\x00": 1}), {}),
    "nan in meta": ("s-1", event(meta={"a": {"b": float("nan")}}), {}),
    "surrogate in meta": ("s-1", event(meta={"a": "\udfff"}), {}),
    "bytes in meta": ("s-1", event(meta={"a": b""}), {}),
    "deep meta": (
        "s-1",
        event(
            meta={"a": eval("[" * 90 + "]" * 90)}
            | {"b": __import__("functools").reduce(lambda a, _: [a], range(999), 0)}
        ),
        {},
    ),
    "large meta": ("s-1", event(meta={"a": "x" * 65_536}), {}),
    "empty stream": ("", event(), {}),
    "nul in stream": ("s-\x00", event(), {}),
    "surrogate in stream": ("s-\ud800", event(), {}),
    "long stream": ("s-" + "x" * 1_024, event(), {}),
    "long category": ("c" * 248 + "-1", event(), {}),
    "long stream in bytes": ("s-" + "語" * 683, event(), {}),
    "category with space": ("a b-1", event(), {}),
    "id that is no uuid": ("s-1", event(id="x"), {}),
    "negative version": ("s-1", event(), {"expected": -1}),
    "huge version": ("s-1", event(), {"expected": 2**63}),
    "wrong word": ("s-1", event(), {"expected": "some"}),
    "boolean version": ("s-1", event(), {"expected": True}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_stand_in_the_log_is_refused_before_any_sql(case):
    """No connection at all is given: SQL would be an error of another kind."""
    stream, events, more = REFUSED[case]
    with pytest.raises(InvalidEvent) as caught:
        append(None, stream, events, **more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_clients_encoding_does_not_matter(database, encoding):
    """SQL_ASCII is what a client speaks by default with a database made in the locale C."""
    one, two = [event(meta={"é": "é"}) for _ in range(2)], event(meta={"é": "é"})
    with psycopg.connect(database, client_encoding=encoding) as connection:
        for again in (False, True):
            repeated = [append(connection, "a-é", one, expected=0).repeated]
            repeated += [append(connection, "a-é", two, expected=2).repeated]
            assert repeated == [again, again]
        for batch in (event(), [event(), event()]):
            with pytest.raises(VersionConflict, match="is at version 3"):
                append(connection, "a-é", batch, expected="none")
        assert bulk_append(connection, [("a-é", 3, [event(meta={"é": "é"})])]).events == 1
        with pytest.raises(VersionConflict, match="is at version 4"):
            bulk_append(connection, [("a-é", 3, [event()])])
        with pytest.raises(DuplicateEvent):
            bulk_append(connection, [("a-b", 0, [two])])
    with psycopg.connect(database) as connection:
        written = connection.execute("SELECT stream, version, meta FROM outbox.event ORDER BY 2").fetchall()
    assert written == [("a-é", version, {"é": "é"}) for version in (1, 2, 3, 4)]


def test_ten_thousand_events_go_in_one_append_and_not_one_more(module_database, stream):
    batch = [event() for _ in range(10_000)]
    with psycopg_plain(module_database) as one:
        with pytest.raises(InvalidEvent, match="at most 10000"):
            one.append(stream, [*batch, event()])
        answer = one.append(stream, batch, expected="none")
    assert answer.version == 10_000
    assert list(answer.positions) == sorted(answer.positions)


def test_two_of_one_id_in_a_batch_are_refused(stream):
    twice = event()
    with pytest.raises(InvalidEvent, match="twice"):
        append(None, stream, [twice, twice])


def test_a_database_without_tables_says_what_to_run(kind, empty_database, stream):
    with kind(empty_database) as one:
        with pytest.raises(DatabaseError, match="outbox migrate"):
            one.append(stream, event())
        one.rollback()
        with pytest.raises(DatabaseError, match="outbox migrate"):
            one.send("t", "k", b"")
        one.rollback()
