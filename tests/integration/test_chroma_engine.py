"""Chroma's own process: it is asked, it fails and it ends as the engine inside ours would, but stops nobody."""

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import chromadb
import numpy as np
import psutil
import pytest
from chromadb.errors import NotFoundError

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks import chroma_client
from projectors.sinks.chroma_child import Answers, carried
from projectors.sinks.chroma_client import is_refusal, open_client, quiet
from projectors.sinks.chroma_engine import DATABASE, Engine
from projectors.sinks.shared import Shared

WITHIN_S = 60


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "chroma"


@pytest.fixture
def client(folder):
    with open_client({"path": folder}) as client:
        yield client


@pytest.fixture
def records(client):
    made = client.get_or_create_collection("records", embedding_function=None)
    add(made, "a")
    return made


def add(records, *ids):
    vectors = [np.array([1, n], np.float32) for n, _ in enumerate(ids)]
    records.add(ids=list(ids), embeddings=vectors, documents=[*ids], metadatas=[{"n": 1}] * len(ids))


def engines(folder):
    return [p for p in psutil.process_iter(["cmdline"]) if str(folder) in (p.info["cmdline"] or [])]


def engine(folder):
    (found,) = engines(folder)
    return found


def test_other_threads_go_on_while_the_engine_works(folder, records):
    answers = []
    engine(folder).send_signal(signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(records.count()))
    asking.start()
    asking.join(0.2)
    assert asking.is_alive() and not answers
    engine(folder).send_signal(signal.SIGCONT)
    asking.join(WITHIN_S)
    assert answers == [1]


def test_threads_take_turns_and_each_has_its_own_answer(client, records):
    found = {}

    def ask(n):
        own = client.get_or_create_collection(f"own-{n}", embedding_function=None)
        add(own, *[f"{n}-{i}" for i in range(n + 1)])
        found[n] = (own.count(), own.get(include=[])["ids"][0])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    assert found == {n: (n + 1, f"{n}-0") for n in range(6)}


def test_sinks_and_readers_of_a_folder_share_a_process_which_ends_after_the_last(folder):
    with open_client({"path": folder}) as one:
        with open_client({"path": folder}):
            process = engine(folder)
        one.get_or_create_collection("records")
        assert engine(folder) == process
    with open_client({"path": folder}):
        assert engine(folder) == process, "it rests before it ends"
    psutil.wait_procs([process], WITHIN_S)
    assert not process.is_running() and not engines(folder)


def test_a_folder_has_one_process_by_whatever_path_it_is_reached(folder, tmp_path):
    (tmp_path / "other").symlink_to(folder)
    with open_client({"path": folder}) as one, open_client({"path": tmp_path / "other"}) as other:
        one.get_or_create_collection("records", embedding_function=None)
        assert other.get_collection("records", embedding_function=None).count() == 0


def test_an_engine_at_rest_is_not_given_a_folder_that_has_taken_the_others_place(folder):
    with open_client({"path": folder}) as client:
        client.get_or_create_collection("records")
    shutil.rmtree(folder)
    with open_client({"path": folder}) as client, pytest.raises(NotFoundError):
        client.get_collection("records")
    assert (folder / DATABASE).is_file()
    assert len(engines(folder)) == 1


def test_an_engine_that_is_held_again_while_it_rests_is_not_ended(folder):
    rested = Shared(Engine.close, rests_s=0.2, fits=Engine.fits)
    with rested.hold(folder, Engine) as one:
        pass
    with rested.hold(folder, Engine) as again:
        assert again is one
        time.sleep(0.6)
        assert again.ask(None, "get_max_batch_size", {})
        assert len(engines(folder)) == 1
    psutil.wait_procs(engines(folder), WITHIN_S)
    assert not engines(folder)


def test_an_engine_that_was_killed_is_an_unavailable_store_and_the_next_question_starts_another(folder, records):
    engine(folder).kill()
    with pytest.raises(StoreUnavailable, match="has ended with status -9"):
        records.count()
    assert records.get(ids=["a"], include=["documents"])["documents"] == ["a"]


def test_an_engine_that_died_at_rest_is_not_given_to_the_next(folder):
    with open_client({"path": folder}):
        died = engine(folder)
    died.kill()
    psutil.wait_procs([died], 1)  # a zombie, until somebody asks
    with open_client({"path": folder}) as client:
        assert client.get_max_batch_size()


def test_a_question_that_was_interrupted_leaves_its_answer_to_nobody(folder, records):
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    process, before = engine(folder), signal.signal(signal.SIGUSR1, interrupt)
    process.suspend()
    later = [threading.Timer(0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))]
    later.append(threading.Timer(0.6, process.resume))
    try:
        for timer in later:
            timer.start()
        with pytest.raises(Interrupted):
            records.count()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert records.get(ids=["a"], include=["documents"])["documents"] == ["a"]


def test_signals_to_the_whole_group_leave_the_engine_to_its_parent(folder, records):
    for number in (signal.SIGINT, signal.SIGTERM):
        engine(folder).send_signal(number)
    assert records.count() == 1


def test_a_ctrl_c_while_it_starts_does_not_reach_it(folder):
    code = "\n".join(
        [
            "import pathlib, signal",
            "from projectors.sinks.chroma_engine import Engine",
            "signal.signal(signal.SIGINT, lambda *_: None)",
            f"Engine(pathlib.Path({str(folder)!r})).close()",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE) as parent:
        until = time.monotonic() + WITHIN_S
        while not engines(folder) and time.monotonic() < until:
            pass
        os.killpg(parent.pid, signal.SIGINT)
        said = parent.communicate(timeout=WITHIN_S)[1]
    assert (parent.returncode, said) == (0, b"")


def test_an_engine_ends_with_a_parent_that_was_killed(folder):
    code = (
        "import os, sys; from projectors.sinks.chroma_client import open_client\n"
        "with open_client({'path': sys.argv[1]}) as client: print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout.readline() == "open\n"
        (child,) = psutil.Process(parent.pid).children()
    finally:
        parent.kill()
        parent.wait(WITHIN_S)
    psutil.wait_procs([child], WITHIN_S)
    assert not child.is_running()


def test_a_folder_is_opened_only_when_an_engine_left_behind_has_ended(folder):
    lock = os.open(folder.with_name("chroma.engine"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    counts = []

    def ask():
        with open_client({"path": folder}) as client:
            counts.append(client.get_max_batch_size())

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(3)
    assert asking.is_alive() and not list(folder.glob("*"))
    os.close(lock)
    asking.join(WITHIN_S)
    assert len(counts) == 1


def test_values_of_classes_that_only_this_process_has_are_kept_as_what_they_are(folder):
    code = (
        "import enum, sys; from projectors.record import Change, Vector\n"
        "from projectors.sinks.chroma import open_sink\n"
        "class Kind(enum.StrEnum): A = 'alpha'\n"
        "class Level(enum.IntEnum): LOW = 1\n"
        "class Ratio(float): pass\n"
        "record = Vector('k', Kind.A, {'kind': Kind.A, 'level': Level.LOW}, [Ratio(1), 0.0])\n"
        "with open_sink('things', {'path': sys.argv[1]}) as sink:\n"
        "    sink.prepare('g1'); sink.apply('g1', [Change('k', 's', 1, record)])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    with open_client({"path": folder}) as client:
        found = client.get_collection("things.g1.records", embedding_function=None).get(ids=["k"])
    assert found["documents"] == ["alpha"]
    assert {name: value for name, value in found["metadatas"][0].items() if name[0] != "_"} == {
        "kind": "alpha",
        "level": 1,
    }


def test_what_chroma_raises_is_raised_here(client, records):
    with pytest.raises(Exception, match="dimension") as refused:
        records.add(ids=["b"], embeddings=[[1.0, 2.0, 3.0]], documents=["b"])
    assert is_refusal(refused.value)
    with pytest.raises(NotFoundError):
        client.get_collection("no such one", embedding_function=None)


def test_a_collection_made_anew_is_not_the_one_that_was_dropped(folder, client, records):
    client.delete_collection("records")
    client.get_or_create_collection("records", embedding_function=None)
    with pytest.raises(NotFoundError):
        records.count()
    engine(folder).kill()
    with pytest.raises(StoreUnavailable):
        records.count()
    with pytest.raises(NotFoundError):  # nor does an engine that has never seen the first one take it for the second
        records.count()


def test_the_engine_keeps_nothing_of_a_collection_that_was_dropped(folder):
    with closing(chromadb.PersistentClient(str(folder), settings=quiet())) as client:
        answers, made, make = Answers(client), {}, client.get_or_create_collection

        def watched(name, **given):
            collection = make(name, **given)
            made[name] = weakref.ref(collection)
            return collection

        client.get_or_create_collection = watched
        for name in ("dropped", "kept"):
            answers.answer(None, "get_or_create_collection", {"name": name, "embedding_function": None})
        answers.answer(None, "delete_collection", {"name": "dropped"})
        gc.collect()
        assert [name for name, collection in made.items() if collection() is not None] == ["kept"]


def test_a_folder_that_cannot_be_opened_is_said_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((SettingsError, StoreUnavailable)) as caught, open_client({"path": tmp_path / "file"}):
        pass
    assert "\n" not in str(caught.value)
    assert not engines(tmp_path / "file")


def test_a_database_that_is_none_is_said_in_a_line(folder):
    folder.mkdir()
    (folder / DATABASE).write_bytes(b"no database " * 1000)
    with pytest.raises((SettingsError, StoreError)) as caught, open_client({"path": folder}):
        pass
    assert "\n" not in str(caught.value)


def test_an_error_that_cannot_be_sent_says_the_same():
    class Local(Exception):
        pass

    assert str(carried(Local("as it is"))) == "Local: as it is"
    assert isinstance(carried(ValueError("as it is")), ValueError)


def test_nothing_of_the_engines_is_printed(folder):
    code = f"from projectors.sinks.chroma_client import open_client\nwith open_client({{'path': {str(folder)!r}}}): print(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_clients_of_a_server_are_made_and_ended_one_at_a_time(monkeypatch):
    inside, most, taken = [0], [0], []

    def alone(*_):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return Client()

    class Client:
        close = staticmethod(alone)

    def open_one(_):
        with open_client({"url": "http://127.0.0.1:1"}) as client:
            taken.append(client)

    monkeypatch.setattr(chroma_client, "_connected", alone)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(open_one, range(5)))
    assert len(taken) == 5 and most == [1]
