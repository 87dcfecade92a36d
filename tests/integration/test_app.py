"""The product as one block of Python: what a program that embeds it sees of what goes wrong inside."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog

from outbox import NewEvent, append
from outbox.errors import SettingsError, VerificationFailed, WaitTimeout
from outbox.log.statement import Token
from outbox.settings import Projecting, Settings, load
from projectors import App, Document, running
from projectors.sinks.memory import MemorySink
from tests.integration.asking import until


class Customers:
    categories = ("customer",)

    def fold(self, state: Any, event: Any) -> Any:
        return {**(state or {}), **event.data["properties"]}

    def records(self, stream: str, state: Any) -> Any:
        return [Document(stream, "customer", state["name"], state["city"])]


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Running the product as a library sends this process's log lines elsewhere; tests behind look where they were."""
    yield
    structlog.reset_defaults()


def settings_of(dsn: str, folder: Path, **more: Any) -> Settings:
    space = {"memory": {"space": uuid.uuid4().hex}}
    return load(mode="embedded", data_dir=folder, database={"dsn": dsn}, stores=space, **more)


def add(app: App, city: str | None = "London") -> Token:
    properties = {"name": "Ada", **({"city": city} if city else {})}
    with psycopg.connect(app.dsn) as connection:
        return append(connection, "customer-42", NewEvent("entity.patched", {"properties": properties})).token


@contextmanager
def once_ended() -> Iterator[None]:
    """Past the moment at which the threads have ended by themselves."""
    until(lambda: not {"relay", "customers"} & {thread.name for thread in threading.enumerate()})
    yield


def test_what_ends_a_projector_is_raised_and_not_a_wait_in_vain(database: str, tmp_path: Path) -> None:
    """It was a WaitTimeout after ten seconds: "is a relay running?"."""
    wrong = {"customers": (Customers(), "tantivvy")}
    with (
        pytest.raises(SettingsError, match="no store 'tantivvy'"),
        running(projections=wrong, settings=settings_of(database, tmp_path)) as app,
        once_ended(),
    ):
        app.wait_for(add(app))


@pytest.mark.parametrize("call", ["wait_for", "verify"])
def test_an_error_of_a_sinks_own_is_raised_where_its_store_is_asked_for(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def faulty(self: MemorySink, generation: str) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(MemorySink, "prepare", faulty)
    settings = settings_of(database, tmp_path)
    with (
        pytest.raises(ZeroDivisionError, match="of its own"),
        running(projections={"customers": (Customers(), "memory")}, settings=settings) as app,
        once_ended(),
    ):
        with pytest.raises(ZeroDivisionError, match="of its own"):
            app.wait_for(add(app)) if call == "wait_for" else app.verify()


def test_what_ended_a_thread_is_raised_at_the_end_of_the_block(database: str, tmp_path: Path) -> None:
    """Though nobody waited for anything: nothing was projected any more, and nobody would have been told."""
    wrong = {"customers": (Customers(), "tantivvy")}
    with (
        pytest.raises(SettingsError, match="no store 'tantivvy'"),
        running(projections=wrong, settings=settings_of(database, tmp_path)),
        once_ended(),
    ):
        pass


@pytest.mark.timeout(30)
def test_who_waits_already_when_a_thread_ends_is_told_then(database: str, tmp_path: Path) -> None:
    wrong = {"customers": (Customers(), "tantivvy")}
    with (
        pytest.raises(SettingsError, match="no store 'tantivvy'"),
        running(projections=wrong, settings=settings_of(database, tmp_path)) as app,
    ):
        app.wait_for(add(app), timeout_s=3_600)


def test_a_time_out_of_a_projector_that_runs_stays_one(database: str, tmp_path: Path) -> None:
    with running(projections={"customers": (Customers(), "memory")}, settings=settings_of(database, tmp_path)) as app:
        app.wait_for(add(app))
        with psycopg.connect(app.dsn) as connection:
            done = append(connection, "customer-42", NewEvent("entity.patched", {}))
            with pytest.raises(WaitTimeout):  # it is not committed
                app.wait_for(done.token, timeout_s=0.1)


def test_verify_does_not_pass_over_a_stream_that_cannot_be_projected(database: str, tmp_path: Path) -> None:
    """`wait_for` returns, the store lacks the record, and `verify` said that all was well."""
    with running(projections={"customers": (Customers(), "memory")}, settings=settings_of(database, tmp_path)) as app:
        app.wait_for(add(app, city=None))
        with pytest.raises(VerificationFailed, match=r"customers: 1 stream.*customer-42@1: KeyError: 'city'"):
            app.verify()


def test_projections_that_are_given_run_beside_those_of_given_settings(database: str, tmp_path: Path) -> None:
    """They were left out without a word, and waiting for them ended at once."""
    more = {"docs": Projecting(projection="documents", store="memory", categories=("customer",))}
    settings = settings_of(database, tmp_path, projectors=more)
    with running(projections={"customers": (Customers(), "memory")}, settings=settings) as app:
        app.wait_for(add(app))
        assert [hit.title for hit in app.search.text("london")] == ["Ada"]
        assert set(app.side.projecting) == {"docs", "customers"}
        app.verify()


def test_a_folder_that_is_given_is_used_with_settings_that_are_given(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_of(database, tmp_path / "other")
    with running("mine", {"customers": (Customers(), "memory")}, settings) as app:
        assert app.side.settings.data_dir == tmp_path / "mine"


def test_a_given_projector_keeps_what_the_settings_say_of_it(database: str, tmp_path: Path) -> None:
    said = {"customers": Projecting(projection="customers", store="memory", batch=7)}
    settings = settings_of(database, tmp_path, projectors=said)
    with running(projections={"customers": (Customers(), "memory")}, settings=settings) as app:
        assert app.side.projecting["customers"].batch == 7


@pytest.mark.parametrize("wrong", [Customers(), (Customers(),), (Customers(), 7)])
def test_what_is_no_pair_is_named(tmp_path: Path, wrong: Any) -> None:
    with (
        pytest.raises(SettingsError, match=r"projections\['customers'\] must be a pair"),
        running(tmp_path, {"customers": wrong}),
    ):
        pass
