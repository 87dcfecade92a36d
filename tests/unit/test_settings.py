"""Settings: what overrides what, and one line that names the key when something is wrong."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from outbox.broker import KafkaSettings
from outbox.errors import SettingsError
from outbox.relay.settings import RelaySettings
from outbox.settings import load
from projectors.layout import Layout


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OUTBOX_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refused(*said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load()
    for word in said:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_any_setting_it_is_embedded_in_a_folder_here(tmp_path: Path) -> None:
    settings = load()
    assert settings.mode == "embedded"
    assert settings.data_dir == tmp_path / ".outbox"
    assert settings.prefix == "outbox"


def test_the_environment_beats_the_file_and_the_caller_beats_both(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("outbox.toml").write_text('prefix = "file"\n[relay]\nname = "file"\nlease_s = 5.0\n')
    assert load().prefix == "file"
    monkeypatch.setenv("OUTBOX_PREFIX", "environment")
    monkeypatch.setenv("OUTBOX_RELAY__NAME", "environment")
    assert load().prefix == "environment"
    assert (load().relay.name, load().relay.lease_s) == ("environment", 5.0)
    assert load(prefix="caller").prefix == "caller"


def test_a_file_is_named_by_the_caller_or_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        Path(f"{name}.toml").write_text(f'prefix = "{name}"')
    assert load(tmp_path / "one.toml").prefix == "one"
    monkeypatch.setenv("OUTBOX_CONFIG", "two.toml")
    assert load().prefix == "two"
    assert load(tmp_path / "one.toml").prefix == "one"


def test_naming_a_file_leaves_no_trace_in_the_process(tmp_path: Path) -> None:
    Path("one.toml").write_text('prefix = "one"')
    load(tmp_path / "one.toml")
    assert "OUTBOX_CONFIG" not in os.environ
    assert load().prefix == "outbox"


def test_a_named_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_CONFIG", "missing.toml")
    refused("missing.toml")


@pytest.mark.parametrize("text", ["mode = [", b"\xff\xfe"])
def test_a_file_that_is_no_toml_is_refused(text: str | bytes) -> None:
    Path("outbox.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused("settings cannot be read")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("OUTBOX_MODE", "sideways", ["'mode'", "sideways"]),
        ("OUTBOX_DATABSE__DSN", "x", ["OUTBOX_DATABSE__DSN", "database"]),
        ("OUTBOX_CONFIGURATION", "x", ["OUTBOX_CONFIGURATION"]),
        ("OUTBOX_DATABASE__DNS", "x", ["database.dns"]),
        ("OUTBOX_RELAY__LEASE_S", "soon", ["relay.lease_s", "soon"]),
        ("OUTBOX_RELAY__PAGE_MAX", "1", ["relay.page_max", "200"]),
        ("OUTBOX_PREFIX", "a b", ["'prefix'"]),
        ("OUTBOX_PREFIX", "\N{SNOWMAN}" * 100, ["'prefix'"]),
        ("OUTBOX_PROJECTORS", "{", ["projectors"]),
        ("OUTBOX_PROJECTORS", '{"x": {"projection": "graph"}}', ["projectors.x.store"]),
        ("OUTBOX_KAFKA__CLIENT", "carrier pigeon", ["kafka.client"]),
        ("OUTBOX_KAFKA__LINGER_MS", "-1", ["kafka.linger_ms", "-1"]),
        ("OUTBOX_KAFKA__LINGER_MS", "inf", ["kafka.linger_ms", "inf"]),
        ("OUTBOX_KAFKA__REPLICATION", "-5", ["kafka.replication", "-1 for the servers' own"]),
        ("OUTBOX_KAFKA__REPLICATION", "0", ["kafka.replication", "-1 for the servers' own"]),
        ("OUTBOX_KAFKA__REPLICATION", "40000", ["kafka.replication", "10000"]),
        ("OUTBOX_KAFKA__MAX_MESSAGE_BYTES", "1000000000000", ["kafka.max_message_bytes", "1000000000"]),
        ("OUTBOX_KAFKA__SESSION_TIMEOUT_S", "inf", ["kafka.session_timeout_s", "3600"]),
        ("OUTBOX_KAFKA__SESSION_TIMEOUT_S", "1e-9", ["kafka.session_timeout_s", "0.1"]),
        ("OUTBOX_KAFKA__TIMEOUT_S", "1e12", ["kafka.timeout_s", "3600"]),
        ("OUTBOX_RELAY__NAME", " ", ["relay.name", "1 to 200 printable"]),
        ("OUTBOX_RELAY__NAME", "a\tb", ["relay.name", "1 to 200 printable"]),
        ("OUTBOX_RELAY__NAME", "a" * 201, ["relay.name", "1 to 200 printable"]),
        ("OUTBOX_RELAY__PAGE_MAX", "1000000000000", ["relay.page_max", "1000000"]),
        ("OUTBOX_RELAY__SLEEP_MAX_S", "1e-12", ["relay.sleep_max_s", "0.001"]),
        ("OUTBOX_RELAY__SLOT_WAL_WARN_BYTES", "1" + "0" * 30, ["relay.slot_wal_warn_bytes"]),
        ("OUTBOX_PREFIX", "a" * 201, ["'prefix'"]),
        ("OUTBOX_SCHEMAS", '[""]', ["schemas.0", "'.' is this one"]),
        ("OUTBOX_PROJECTORS", '{"a/b": {"projection": "graph", "store": "neo4j"}}', ["'projectors.a/b'", "no '/'"]),
        ("OUTBOX_PROJECTORS", '{"": {"projection": "graph", "store": "neo4j"}}', ["projectors", "1 to 100 printable"]),
    ],
)
def test_what_is_wrong_is_named_by_its_key(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    refused(*said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('data_dir = ""', ["'data_dir'", "'.' is this one"]),
        ('data_dir = "a\\u0000b"', ["'data_dir'"]),
        ('relay.name = ""', ["relay.name", "1 to 200 printable"]),
    ],
)
def test_an_empty_value_of_the_file_is_named_by_its_key(text: str, said: list[str]) -> None:
    """Empty variables are left out, and mean the default; in a file somebody wrote it."""
    Path("outbox.toml").write_text(text)
    refused(*said)


@pytest.mark.parametrize("replication", [-1, 1, 3])
def test_replication_is_a_number_of_copies_or_left_to_the_servers(replication: int) -> None:
    settings = load(kafka={"bootstrap": "kafka:9092", "replication": replication})
    assert settings.kafka_settings().replication == replication


def test_a_blank_dsn_is_none() -> None:
    """To PostgreSQL's library it is whatever server is on this machine."""
    with pytest.raises(SettingsError, match=r"database\.dsn is not set"):
        load(mode="servers", database={"dsn": " "}).dsn  # noqa: B018


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap": "a:1,,b:1"},
        {"replication": 0},
        {"replication": -5},
        {"linger_ms": -1.0},
        {"linger_ms": math.nan},
        {"timeout_s": math.nan},
        {"session_timeout_s": math.inf},
    ],
)
def test_what_is_wrong_with_kafkas_settings_given_in_python_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"kafka\.{next(iter(wrong))}"):
        KafkaSettings(**{"bootstrap": "kafka:9092"} | wrong)


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a\0"}, {"page_max": 0}, {"lease_s": -1.0}, {"retry_s": math.nan}]
)
def test_what_is_wrong_with_a_relays_settings_given_in_python_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"relay\.{next(iter(wrong))}"):
        RelaySettings(**wrong)


@pytest.mark.parametrize("name", ["OUTBOX_DATABASE", "OUTBOX_STORES", "OUTBOX_KAFKA__SECURITY", "OUTBOX_STORES__NEO4J"])
def test_a_value_that_may_hold_a_password_is_never_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, '"postgresql://me:hunter2@host/db"')
    with pytest.raises(SettingsError) as caught:
        load()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["OUTBOX_TEST_POSTGRES", "OUTBOX_LOCAL_DIR", "OTHER_MODE"])
def test_variables_that_are_read_elsewhere_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert load().mode == "embedded"


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_MODE", "")
    assert load().mode == "embedded"


def test_what_servers_need_is_asked_for_by_name() -> None:
    settings = load(mode="servers")
    with pytest.raises(SettingsError, match="OUTBOX_DATABASE__DSN"):
        settings.dsn  # noqa: B018
    with pytest.raises(SettingsError, match="OUTBOX_KAFKA__BOOTSTRAP"):
        settings.kafka_settings()


def test_each_section_reaches_the_part_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE__DSN", "postgresql://somewhere")
    monkeypatch.setenv("OUTBOX_KAFKA__BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("OUTBOX_KAFKA__PARTITIONS", "3")
    monkeypatch.setenv("OUTBOX_KAFKA__SECURITY", '{"sasl.username": "me"}')
    monkeypatch.setenv("OUTBOX_KAFKA__MEMBER", "shop-projector-0")
    monkeypatch.setenv("OUTBOX_KAFKA__LINGER_MS", "5")
    settings = load(prefix="shop", relay={"name": "second", "page_max": 500})
    assert settings.dsn == "postgresql://somewhere"
    kafka = settings.kafka_settings()
    assert (kafka.bootstrap, kafka.partitions, dict(kafka.security)) == ("kafka:9092", 3, {"sasl.username": "me"})
    assert (kafka.member, kafka.linger_ms) == ("shop-projector-0", 5.0)
    relay = settings.relay_settings()
    assert (relay.name, relay.prefix, relay.page_max) == ("second", "shop", 500)


def test_what_is_not_given_of_kafka_is_as_its_own_settings_have_it() -> None:
    assert load(kafka={"bootstrap": "kafka:9092"}).kafka_settings() == KafkaSettings("kafka:9092")


def test_a_folder_in_the_home_is_understood() -> None:
    assert load(data_dir="~/data").data_dir == Path.home() / "data"


def test_a_stores_folder_that_is_no_text_is_named() -> None:
    layout = Layout(load(stores={"chroma": {"path": 5}}), "")
    with pytest.raises(SettingsError, match=r"stores\.chroma\.path"):
        layout.store_settings("chroma")
