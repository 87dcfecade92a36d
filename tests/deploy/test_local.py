"""Real servers start, stop, crash, freeze and come back with their data."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import psutil
import psycopg
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from neo4j import GraphDatabase

from deploy.local import Local, LocalError, NotRunning, StartFailed, UnknownService, process
from deploy.local.ports import reserve, reserve_these
from deploy.local.postgres import Postgres

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def local():
    with Local() as one:
        one.start("postgres", "kafka", "neo4j", "elasticsearch", "chroma")
        yield one


def ask(url, body=None, method=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def wait_until(condition, within_s=15):
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "the condition did not come about in time"
        time.sleep(0.02)


def test_all_five_start_side_by_side_and_say_where_they_are(local):
    assert set(local.addresses) == {
        f"OUTBOX_TEST_{name}" for name in ("POSTGRES", "KAFKA", "NEO4J", "ELASTICSEARCH", "CHROMA")
    }
    for service in local.services.values():
        assert service.alive
        assert service.resident_bytes > 10_000_000
        assert service.log.exists()
        assert os.getsid(service.pid) == service.pid != os.getsid(0), "it must not get our terminal's signals"


def test_postgres_has_logical_decoding_and_durable_commits(local):
    with psycopg.connect(local["postgres"].address) as connection:
        show = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in ("wal_level", "fsync", "max_connections", "max_prepared_transactions", "max_replication_slots")
        }
        assert show == {
            "wal_level": "logical",
            "fsync": "on",
            "max_connections": "200",
            "max_prepared_transactions": "0",
            "max_replication_slots": "20",
        }
        connection.execute("CREATE EXTENSION vector")
        assert connection.execute("SELECT '[3,4]'::vector <-> '[0,0]'").fetchone() == (5.0,)


def test_postgres_keeps_committed_rows_over_a_crash(local):
    service = local["postgres"]
    with psycopg.connect(service.address, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        service.kill()
        assert not service.alive
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    again = service.restart()
    assert again.address == service.address
    assert again.pid != service.pid
    with psycopg.connect(again.address) as connection:
        assert connection.execute("SELECT n FROM kept").fetchone() == (7,)


def test_a_paused_postgres_answers_on_the_same_connection_once_it_goes_on(local):
    service = local["postgres"]
    with psycopg.connect(service.address) as connection:
        backend = psutil.Process(connection.info.backend_pid)
        service.pause()
        wait_until(lambda: backend.status() == psutil.STATUS_STOPPED)
        assert not Postgres().answers(service.ports[0])
        service.resume()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_paused_service_can_be_stopped(local):
    local["chroma"].pause()
    local["chroma"].stop()
    assert not local["chroma"].alive
    local["chroma"].restart()
    assert "nanosecond heartbeat" in ask(local["chroma"].address + "/api/v2/heartbeat")


def test_chromas_database_appends_to_a_log(local):
    file = local["chroma"].home / "data" / "chroma.sqlite3"
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_kafka_keeps_acknowledged_messages_over_a_crash(local):
    service = local["kafka"]
    admin = KafkaAdminClient(bootstrap_servers=service.address)
    admin.create_topics([NewTopic("kept", num_partitions=1, replication_factor=1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=service.address, acks="all")
    offset = producer.send("kept", b"seven", partition=0).get(timeout=20).offset
    producer.close()
    service.kill()
    again = service.restart()
    assert again.address == service.address
    consumer = KafkaConsumer(bootstrap_servers=again.address, consumer_timeout_ms=20_000)
    consumer.assign([TopicPartition("kept", 0)])
    consumer.seek(TopicPartition("kept", 0), offset)
    assert next(consumer).value == b"seven"
    consumer.close()


def test_neo4j_keeps_committed_nodes_over_a_crash_and_over_a_stop(local):
    service = local["neo4j"]
    with GraphDatabase.driver(service.address) as driver:
        driver.execute_query("CREATE (:Kept {n: 7})")
    for end in (service.kill, service.stop):
        end()
        service.restart()
        with GraphDatabase.driver(service.address) as driver:
            assert driver.execute_query("MATCH (k:Kept) RETURN DISTINCT k.n AS n").records[0]["n"] == 7


def test_elasticsearch_serves_clients_and_keeps_documents_over_a_crash(local):
    from elasticsearch import Elasticsearch

    service = local["elasticsearch"]
    with Elasticsearch(service.address) as client:
        assert client.info()["version"]["number"] == "9.5.3"
        # best_compression is what needs the zstd library
        client.indices.create(index="kept", settings={"index.codec": "best_compression", "number_of_replicas": 0})
        client.index(index="kept", id="a", document={"n": 7})
    service.kill()
    service.restart()
    with Elasticsearch(service.address) as client:
        assert client.get(index="kept", id="a")["_source"] == {"n": 7}


def test_starting_what_runs_already_changes_nothing(local):
    before = local["postgres"]
    assert local.start("postgres") == (before,)


def test_two_homes_side_by_side_do_not_meet(local):
    with Local(settings={"postgres": {"fsync": "off"}}) as other:
        other.start("postgres")
        assert other["postgres"].address != local["postgres"].address
        with psycopg.connect(other["postgres"].address) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("off",)
            connection.execute("CREATE TABLE only_here ()")
        with psycopg.connect(local["postgres"].address) as connection:
            assert connection.execute("SELECT to_regclass('only_here')").fetchone() == (None,)
        pid, home = other["postgres"].pid, other.home
    assert not psutil.pid_exists(pid)
    assert not home.exists()
    assert local["postgres"].alive


def test_a_home_of_ones_own_is_kept_and_gone_on_from(tmp_path):
    with Local(tmp_path / "home") as first:
        (service,) = first.start("postgres")
        with psycopg.connect(service.address, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept ()")
    with Local(tmp_path / "home") as second:
        assert not second["postgres"].alive
        (service,) = second.start("postgres")
        with psycopg.connect(service.address) as connection:
            assert connection.execute("SELECT to_regclass('kept')").fetchone() == ("kept",)


def test_the_port_of_a_crashed_service_is_given_to_nobody_else(local):
    service = local["chroma"]
    service.kill()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", service.ports[0]))
    for _ in range(200):  # a client that retries may otherwise be given the very port as its own end
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", service.ports[0]))
    service.restart()


def test_a_server_that_cannot_start_is_one_clear_line_and_leaves_nothing(tmp_path):
    with Local(tmp_path, settings={"postgres": {"wal_level": "nonsense"}}) as broken:
        with pytest.raises(StartFailed) as caught:
            broken.start("postgres", "chroma")
        assert "\n" not in str(caught.value)
        assert "nonsense" in str(caught.value.log_tail)
        assert str(tmp_path / "postgres.log") in str(caught.value)
        assert "postgres" not in broken.services
        assert not broken["chroma"].alive, "what the same call started is ended again"


def test_a_start_that_loses_its_port_is_repeated_with_another(monkeypatch):
    taken = socket.create_server(("127.0.0.1", 0))
    lost = [taken.getsockname()[1]]

    class Lost:
        ports = tuple(lost)

        def close(self):
            pass

    real = reserve
    monkeypatch.setattr("deploy.local.ports.reserve", lambda count: Lost() if lost and lost.pop() else real(count))
    with taken, Local() as local:
        (service,) = local.start("postgres")
        assert service.ports != Lost.ports
        assert "in use" in service.log.read_text()


def test_a_service_that_is_unknown_or_was_never_started_is_named(tmp_path):
    with Local(tmp_path) as local:
        with pytest.raises(UnknownService, match=r"redis.*postgres, kafka, neo4j, elasticsearch, chroma"):
            local.start("redis")
        with pytest.raises(NotRunning, match="kafka was not started"):
            local.kill("kafka")
        with pytest.raises(UnknownService):
            Local(tmp_path, settings={"redis": {}})


def test_chroma_refuses_settings_it_would_ignore(tmp_path):
    with (
        Local(tmp_path, settings={"chroma": {"x": "1"}}) as local,
        pytest.raises(LocalError, match="takes no settings"),
    ):
        local.start("chroma")


def test_servers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from deploy.local import Local\n"
        "local = Local(Path(sys.argv[1])); local.start('postgres'); print(local['postgres'].pid, flush=True)\n"
        "time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(owner.stdout.readline())
    assert psutil.pid_exists(pid)
    owner.kill()
    owner.communicate()
    wait_until(lambda: not psutil.pid_exists(pid))


def test_a_number_that_names_another_process_by_now_is_left_alone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    reused = process.Pid(child.pid, psutil.Process(child.pid).create_time() - 3600)
    assert not process.alive(reused)
    process.kill(reused)
    assert child.poll() is None
    child.communicate()


def test_reserved_ports_differ_and_can_be_had_again_once_given_back():
    reservation = reserve(3)
    assert len(set(reservation.ports)) == 3
    reservation.close()
    reserve_these(reservation.ports).close()
