"""A projector that stood still and was replaced by one of its name, as real processes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox.database import connected
from projectors import ledger
from tests.e2e.outbox_command import OUTBOX, environment, outbox, process, projecting_names
from tests.integration.reading import until

PROJECTION = """
from projectors.record import Row

class Names:
    categories = ("pet",)
    def fold(self, state, event):
        return event.data
    def records(self, stream, state):
        yield Row(stream, {"name": state["name"]})
"""
PATIENCE_S = 60.0


@pytest.fixture
def settings(database: str, address: Callable[[str], str], tmp_path: Path) -> dict[str, str]:
    return projecting_names(database, address("kafka"), tmp_path, PROJECTION) | {"OUTBOX_KAFKA__MEMBER": "pets-0"}


@contextmanager
def to_be_fenced(settings: dict[str, str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A projector whose end is the test's business; what it says is kept."""
    running = subprocess.Popen(
        [OUTBOX, "project", "names"], env=environment(settings), cwd=cwd, stderr=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def test_one_whose_name_was_taken_while_it_stood_still_ends_with_one_line_and_the_other_goes_on(
    settings: dict[str, str], database: str, tmp_path: Path
) -> None:
    def applied(stream: str) -> None:
        """Append to the stream, publish it, and wait until it is applied."""
        done = outbox("append", stream, "entity.upserted", "-", settings=settings, cwd=tmp_path, stdin=event)
        assert done.returncode == 0, done.stderr
        assert outbox("relay", "--drain", settings=settings, cwd=tmp_path).returncode == 0
        with connected(database) as connection:
            topics = [f"{settings['OUTBOX_PREFIX']}.pet"]
            until(lambda: ledger.lag(connection, "names", "g1", topics) == 0, f"{stream} is applied", PATIENCE_S)

    event = json.dumps({"kind": "pet", "text": "", "name": "n"})
    with to_be_fenced(settings, tmp_path) as zombie:
        applied("pet-1")
        zombie.send_signal(signal.SIGSTOP)
        with process("project", "names", settings=settings, cwd=tmp_path) as successor:
            applied("pet-2")
            zombie.send_signal(signal.SIGCONT)
            _, said = zombie.communicate(timeout=PATIENCE_S)
            assert zombie.returncode == 1, said
            lines = said.splitlines()
            assert [line for line in lines if line.startswith("outbox: ")] == lines[-1:], said
            assert "'pets-0'" in lines[-1]
            assert "Traceback" not in said
            applied("pet-3")
            assert successor.poll() is None
