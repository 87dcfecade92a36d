"""Servers are taken from the environment first and started here last."""

import psutil
import psycopg
import pytest

from deploy.local import NAMES, Local, ServersUnavailable, Source, UnknownService, resolve
from deploy.local.containers import engine_answers
from deploy.local.servers import variable


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(variable(name), raising=False)
    # an engine that cannot answer, so that these tests do not depend on the machine
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


def test_a_given_server_is_used_as_it_is_and_left_running(monkeypatch):
    with Local() as mine:
        (service,) = mine.start("postgres")
        monkeypatch.setenv("OUTBOX_TEST_POSTGRES", service.address)
        with resolve(["postgres"]) as found:
            assert found.addresses == {"OUTBOX_TEST_POSTGRES": service.address}
            assert found.sources == {"postgres": Source.ENVIRONMENT}
            assert found.local is None
        assert service.alive


def test_only_what_is_not_given_is_started_and_it_ends_with_the_block(monkeypatch):
    monkeypatch.setenv("OUTBOX_TEST_KAFKA", "127.0.0.1:1")
    with resolve(["kafka", "postgres"], settings={"postgres": {"fsync": "off"}}) as found:
        assert found.sources == {"kafka": Source.ENVIRONMENT, "postgres": Source.LOCAL}
        assert list(found.local.services) == ["postgres"]
        with psycopg.connect(found.address("postgres")) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("off",)
        pid = found.local["postgres"].pid
    assert not psutil.pid_exists(pid)


def test_an_empty_variable_gives_nothing(monkeypatch):
    monkeypatch.setenv("OUTBOX_TEST_POSTGRES", "")
    with resolve(["postgres"]) as found:
        assert found.sources == {"postgres": Source.LOCAL}


def test_without_any_way_the_error_names_each_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("OUTBOX_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServersUnavailable) as caught, resolve(["kafka"]):
        pass
    assert "OUTBOX_TEST_KAFKA" in str(caught.value)
    assert "Docker" in str(caught.value)
    assert "install the package `maven`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_service_is_refused_before_anything_starts():
    with pytest.raises(UnknownService), resolve(["postgres", "redis"]):
        pass


@pytest.mark.parametrize("host", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1", "ssh://elsewhere"])
def test_an_engine_that_is_absent_or_on_another_machine_is_not_used(monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    assert engine_answers() is False
