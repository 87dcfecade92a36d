"""What is parked, on its way out of PostgreSQL or into a store, as an operator meets it on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.outbox_command import answer, outbox, process, projecting_names
from tests.integration.reading import until

PROJECTION = """
from projectors.record import Row

class Names:
    categories = ("pet",)
    def fold(self, state, event):
        if event.data["name"] == "bad":
            raise ValueError("no such name")
        return event.data
    def records(self, stream, state):
        yield Row(stream, {"name": state["name"]})
"""


@pytest.fixture
def settings(database: str, address: Callable[[str], str], tmp_path: Path) -> dict[str, str]:
    return projecting_names(database, address("kafka"), tmp_path, PROJECTION)


def put(settings: dict[str, str], cwd: Path, stream: str, **data: str) -> None:
    data = {"kind": "pet", "text": "", **data}
    done = outbox("append", stream, "entity.upserted", "-", settings=settings, cwd=cwd, stdin=json.dumps(data))
    assert done.returncode == 0, done.stderr


def test_a_row_the_broker_refuses_is_listed_tried_again_and_discarded(settings: dict[str, str], tmp_path: Path) -> None:
    small = settings | {"OUTBOX_KAFKA__MAX_MESSAGE_BYTES": "4000"}
    topic = f"{settings['OUTBOX_PREFIX']}.pet"
    for stream in ("pet-large", "pet-lost"):
        put(settings, tmp_path, stream, name="n", text="x" * 20_000)
        put(settings, tmp_path, stream, name="n2")
    put(settings, tmp_path, "pet-small", name="n")
    assert outbox("relay", "--drain", settings=small, cwd=tmp_path).returncode == 0
    parked = answer("parked", "list", settings=small, cwd=tmp_path)
    assert [(p["topic"], p["key"]) for p in parked] == [(topic, k) for k in ("pet-large",) * 2 + ("pet-lost",) * 2]
    assert "pet-large" in outbox("parked", "list", settings=small, cwd=tmp_path).stdout
    assert answer("parked", "retry", topic, "pet-large", settings=small, cwd=tmp_path)["rows"] == 2
    assert outbox("relay", "--drain", settings=settings, cwd=tmp_path).returncode == 0
    left = answer("parked", "list", settings=small, cwd=tmp_path)
    assert [p["key"] for p in left] == ["pet-lost"] * 2
    assert answer("parked", "discard", topic, "pet-lost", "--all", settings=small, cwd=tmp_path)["rows"] == 2
    assert answer("parked", "list", settings=small, cwd=tmp_path) == []
    assert "nothing is parked" in outbox("parked", "list", settings=small, cwd=tmp_path).stdout
    assert "relay.name" in outbox("relay", "--forget", "relay", settings=small, cwd=tmp_path).stderr
    renamed = small | {"OUTBOX_RELAY__NAME": "renamed"}
    assert "is forgotten" in outbox("relay", "--forget", "relay", settings=renamed, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("parked", "retry", "t", "k"), "nothing of key 'k'"),
        (("parked", "discard", "t", "k", "--all"), "nothing of key 'k'"),
        (("parked", "discard", "t", "k"), "--seq"),
        (("parked", "discard", "t", "k", "--all", "--seq", "1"), "--seq"),
        (("dead-letters", "show", "names", "pet-1"), "not parked"),
        (("dead-letters", "discard", "names", "pet-1"), "not parked"),
        (("dead-letters", "show", "nobody", "pet-1"), "nobody"),
    ],
)
def test_what_is_not_parked_is_said_so(
    settings: dict[str, str], tmp_path: Path, command: tuple[str, ...], said: str
) -> None:
    done = outbox(*command, settings=settings, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dead_letter_is_listed_shown_retried_and_discarded(settings: dict[str, str], tmp_path: Path) -> None:
    with (
        process("relay", settings=settings, cwd=tmp_path),
        process("project", "names", settings=settings, cwd=tmp_path),
    ):
        for name in ("good", "bad", "better"):
            put(settings, tmp_path, "pet-1", name=name)
        (letter,) = until(lambda: answer("dead-letters", "list", settings=settings, cwd=tmp_path), "it is parked")
        assert (letter["stream"], letter["version"]) == ("pet-1", 2)
        assert "such name" in outbox("dead-letters", settings=settings, cwd=tmp_path).stdout
        shown = outbox("dead-letters", "show", "names", "pet-1", settings=settings, cwd=tmp_path).stdout
        assert "ValueError: no such name" in shown
        assert "1 event(s) wait behind" in shown
        answer("dead-letters", "retry", "names", "--stream", "pet-1", settings=settings, cwd=tmp_path)
        attempts = lambda: answer("dead-letters", "list", settings=settings, cwd=tmp_path)[0]["attempts"] == 2  # noqa: E731
        until(attempts, "it was tried in vain")
        done = outbox("dead-letters", "discard", "names", "pet-1", settings=settings, cwd=tmp_path)
        assert "version 2 is passed over" in done.stdout
        until(lambda: answer("dead-letters", "list", settings=settings, cwd=tmp_path) == [], "it goes on")
        (report,) = answer("verify", settings=settings, cwd=tmp_path)
        assert (report["records"], report["differences"], report["parked"]) == (1, [], 0)
