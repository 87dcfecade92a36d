"""Asking the process of `outbox up` from another one, and who may open what at the same time."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import OutboxError, SettingsError, VerificationFailed
from projectors import control, operations
from projectors.control import REQUEST_BYTES_MAX, call, holder_of, socket_of
from projectors.holding import StoreHeld, held
from projectors.holding import holder_of as folder_holder
from projectors.pulse import pulse
from projectors.serving import REQUESTS_MAX, serving
from tests.integration.asking import MEMORY, World, settings_of, world

ASK = """
import json, sys
from pathlib import Path
from projectors.control import call
print(json.dumps(call(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))))
"""
HOLD = """
import sys
from pathlib import Path
from projectors.holding import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["short", "deep"])
def served(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[World]:
    folder = tmp_path if request.param == "short" else tmp_path / ("d" * 120)
    with world(settings_of(database, folder, MEMORY)) as built, serving(built.side):
        yield built


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def folder_of(world: World) -> Path:
    return world.side.settings.data_dir


def test_another_process_gets_the_same_answer(served: World) -> None:
    done = python(ASK, str(folder_of(served)), "dead_letters", "{}")
    assert json.loads(done.stdout) == [True, []], done.stderr
    assert holder_of(folder_of(served))


def test_an_error_travels_as_its_class_and_line(served: World) -> None:
    with pytest.raises(SettingsError, match="there is no projector 'nobody'"):
        call(folder_of(served), "rebuild", {"projector": "nobody"})
    done = python(ASK, str(folder_of(served)), "rebuild", '{"projector": "nobody"}')
    assert done.stderr.splitlines()[-1].startswith("outbox.errors.SettingsError: there is no projector 'nobody'")


def test_a_class_that_makes_its_text_of_parts_travels_too() -> None:
    assert isinstance(control._raised("VerificationFailed", "x"), VerificationFailed)
    conflict = control._raised("VersionConflict", "stream a is at version 1")
    assert str(conflict) == "stream a is at version 1"
    assert type(control._raised("Unheard", "x")) is OutboxError


@pytest.mark.parametrize(
    ("operation", "arguments"),
    [("explode", {}), ("status", {"unheard": 1}), ("search", {"text": 7, "how": "find", "limit": "x"})],
)
def test_what_cannot_be_done_is_one_line_and_it_goes_on(served: World, operation: str, arguments: Any) -> None:
    with pytest.raises(OutboxError):
        call(folder_of(served), operation, arguments)
    assert call(folder_of(served), "dead_letters", {}) == (True, [])


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b"\xff" * 100])
def test_nonsense_is_answered_and_it_goes_on(served: World, sent: bytes) -> None:
    with Client(str(socket_of(folder_of(served) / control.NAME)), "AF_UNIX") as connection:
        connection.send_bytes(sent)
        assert "error" in json.loads(connection.recv_bytes())
    assert call(folder_of(served), "dead_letters", {}) == (True, [])


def test_many_ask_at_once(served: World) -> None:
    answers: list[Any] = []
    asking = [
        threading.Thread(target=lambda: answers.append(call(folder_of(served), "dead_letters", {})))
        for _ in range(3 * REQUESTS_MAX)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert answers == [(True, [])] * len(asking)


def test_a_question_that_is_too_long_says_so(served: World) -> None:
    with pytest.raises(OutboxError, match="1048576 bytes of arguments at most, not 1048"):
        call(folder_of(served), "search", {"text": "x" * REQUEST_BYTES_MAX})


def test_it_answers_again_once_files_can_be_opened_again(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [OSError(errno.EMFILE, "Too many open files")] * 20
    accept = Listener.accept

    def failed(self: Listener) -> Any:
        if failing:
            raise failing.pop()
        return accept(self)

    monkeypatch.setattr(Listener, "accept", failed)
    monkeypatch.setattr("projectors.serving.REST_S", 0.0)
    with world(settings_of(database, tmp_path, MEMORY)) as built, serving(built.side):
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(call(tmp_path, "dead_letters", {})), daemon=True)
        asking.start()
        asking.join(20)
        assert answers == [(True, [])]


def test_only_the_owner_may_ask(served: World) -> None:
    assert socket_of(folder_of(served) / control.NAME).stat().st_mode & 0o777 == 0o600


def test_two_cannot_serve_one_folder(served: World) -> None:
    other = python(HOLD, str(folder_of(served) / control.NAME))
    assert "StoreHeld" in other.stderr
    assert str(os.getpid()) in other.stderr


def test_the_socket_goes_with_the_block_and_nobody_answers_then(database: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / ("d" * 120)):
        with world(settings_of(database, folder, MEMORY)) as built:
            with serving(built.side):
                target = socket_of(folder / control.NAME)
                assert target.exists()
            assert not target.exists()
            assert not (folder / control.NAME).is_symlink()
            assert call(folder, "status", {}) == (False, None)
            assert not holder_of(folder)


def test_a_socket_left_by_one_that_was_killed_is_replaced(database: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / control.NAME))
    assert (tmp_path / control.NAME).exists()
    with world(settings_of(database, tmp_path, MEMORY)) as built, serving(built.side):
        assert call(tmp_path, "dead_letters", {}) == (True, [])


def test_one_that_stops_before_it_answers_says_so(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multiprocessing.connection import Listener

    with Listener(str(tmp_path / control.NAME), "AF_UNIX") as listener:
        closing = threading.Thread(target=lambda: listener.accept().close())
        closing.start()
        with pytest.raises(OutboxError, match="stopped before it answered"):
            call(tmp_path, "status", {})
        closing.join()


def test_what_cannot_be_asked_is_one_line(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200)
    deep.mkdir()
    (deep / control.NAME).touch()
    with pytest.raises(OutboxError, match="cannot be asked"):
        call(deep, "status", {})


# ------------------------------------------------------------------- one process a folder


@pytest.fixture
def held_elsewhere(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    folder = tmp_path / "tantivy"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield folder, other
        other.kill()


def test_a_folder_that_another_process_holds_is_refused_naming_it(
    held_elsewhere: tuple[Path, subprocess.Popen[str]], database: str, tmp_path: Path
) -> None:
    _, other = held_elsewhere
    with world(settings_of(database, tmp_path, {"documents": "tantivy"})) as built:
        for opening in (built.side.open_sink("documents"), built.side.open_reader("documents")):
            assert opening is not None
            with pytest.raises(StoreHeld, match=f"process {other.pid}"), opening:
                pass
        (status,) = operations.status(built.side)["projectors"]
        assert (status["answers"], status["said"]) == (True, f"open in process {other.pid}")


def test_a_killed_process_holds_nothing(held_elsewhere: tuple[Path, subprocess.Popen[str]]) -> None:
    folder, other = held_elsewhere
    other.kill()
    other.wait()
    assert folder_holder(folder) is None
    with held(folder), held(folder):
        assert folder_holder(folder) == str(os.getpid())
    assert folder_holder(folder) is None
    assert pulse({"path": str(folder)}).answers is False


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match="cannot be opened"), held(tmp_path / "file" / "tantivy"):
        pass
