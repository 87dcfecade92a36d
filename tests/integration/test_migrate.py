"""Migrations: once each, in order, whoever runs them and however often."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from outbox.database import check_migrated, connect, connected
from outbox.errors import DatabaseError
from outbox.log.migrate import Migration, migrate, migrations

PROGRAM = """
import sys
from outbox.database import connected
from outbox.log.migrate import migrate
with connected(sys.argv[1]) as connection:
    print(len(migrate(connection)))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "0001_one.sql").write_text("CREATE TABLE one (n int);")
    (tmp_path / "0002_two.sql").write_text("ALTER TABLE one ADD COLUMN m int; INSERT INTO one VALUES (1, 2);")
    return tmp_path


@pytest.fixture
def connection(empty_database):
    with connected(empty_database) as connection:
        yield connection


def test_an_empty_database_gets_every_migration_once(connection):
    assert [m.number for m in migrate(connection)] == [m.number for m in migrations()]
    assert migrate(connection) == []
    check_migrated(connection)


def test_each_test_has_a_database_of_its_own(database, module_database, new_database):
    assert len({database, module_database, new_database()}) == 3
    with connected(database) as connection:
        assert migrate(connection) == []


def test_the_shipped_files_are_numbered_without_gaps_or_twins():
    numbers = [m.number for m in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert all(m.name for m in migrations())


def test_two_processes_at_once_run_each_migration_once(empty_database):
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, empty_database], stdout=subprocess.PIPE, text=True)
        for _ in "ab"
    ]
    ran = sorted(int(one.communicate(timeout=60)[0]) for one in both)
    assert ran == [0, len(migrations())]


def test_many_threads_at_once_run_each_migration_once(empty_database, folder):
    def run(_):
        with connected(empty_database) as connection:
            return len(migrate(connection, folder))

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(run, range(6))) == [0] * 5 + [2]
    with connected(empty_database) as connection:
        assert connection.execute("SELECT n, m FROM one").fetchall() == [(1, 2)]


def test_a_new_file_is_run_alone(connection, folder):
    migrate(connection, folder)
    (folder / "0003_three.sql").write_text("CREATE TABLE three ();")
    assert migrate(connection, folder) == [Migration(3, "three", "CREATE TABLE three ();")]


def test_an_edited_file_is_noticed_and_nothing_else_is_run(connection, folder):
    migrate(connection, folder)
    (folder / "0001_one.sql").write_text("CREATE TABLE one (n bigint);")
    (folder / "0003_three.sql").write_text("CREATE TABLE three ();")
    with pytest.raises(DatabaseError, match="0001 'one' was run here with another text"):
        migrate(connection, folder)
    assert connection.execute("SELECT to_regclass('three')").fetchone() == (None,)


def test_a_file_that_comes_late_in_the_order_is_refused(connection, folder):
    """Two branches each added a migration: what was run already cannot have counted on the late one."""
    (folder / "0004_four.sql").write_text("CREATE TABLE four ();")
    migrate(connection, folder)
    (folder / "0003_three.sql").write_text("CREATE TABLE three ();")
    with pytest.raises(DatabaseError, match=r"0003 'three' comes before 0004"):
        migrate(connection, folder)


def test_two_files_of_one_number_are_refused(connection, folder):
    (folder / "0002_twin.sql").write_text("SELECT 1;")
    with pytest.raises(DatabaseError, match="two migrations are numbered 0002"):
        migrate(connection, folder)


def test_a_database_newer_than_this_release_is_left_alone(connection, folder):
    migrate(connection, folder)
    (folder / "0002_two.sql").unlink()
    with pytest.raises(DatabaseError, match="has migration 0002, which this release does not know"):
        migrate(connection, folder)


def test_a_migration_that_fails_changes_nothing(connection, folder):
    (folder / "0003_three.sql").write_text("CREATE TABLE three (); SELECT 1/0;")
    with pytest.raises(DatabaseError, match="migration failed, nothing was changed: division by zero"):
        migrate(connection, folder)
    assert connection.execute("SELECT to_regclass('one'), to_regclass('outbox.migration')").fetchone() == (None, None)


def test_an_old_server_is_told_so(connection, monkeypatch):
    monkeypatch.setattr("outbox.log.migrate.SERVER_MINIMUM", 990000)
    with pytest.raises(DatabaseError, match=r"PostgreSQL \d+ is too old: 99 or newer is needed"):
        migrate(connection)


def test_a_read_only_database_is_one_line(connection):
    connection.execute("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseError, match="read-only transaction") as caught:
        migrate(connection)
    assert "\n" not in str(caught.value)


def test_missing_tables_are_told_before_they_are_missed(connection, empty_database):
    with pytest.raises(DatabaseError, match="run `outbox migrate` first"):
        check_migrated(connection)
    with pytest.raises(DatabaseError, match="run `outbox migrate` first"), connected(empty_database) as other:
        other.execute("SELECT * FROM outbox.event")


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:secret@127.0.0.1:9/nowhere",
        "host=127.0.0.1 port=9 user=u password=secret dbname=nowhere",
        "postgresql://u:secret@127.0.0.1:99999999/nowhere",
        "postgresql://u:secret@no.such.host.invalid/nowhere",
        "postgresql://u:secret@127.0.0.1:9/\x00",
        "postgresql://u:secret@127.0.0.1:9/\ud800",
        "nonsense",
        "foo=bar password=secret",
    ],
)
def test_a_wrong_address_is_one_line_without_the_password(dsn):
    with pytest.raises(DatabaseError) as caught:
        connect(dsn)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_exist_is_named(empty_database):
    with pytest.raises(DatabaseError, match="no_such_database"):
        connect(empty_database.rsplit("/", 1)[0] + "/no_such_database")


def test_a_connection_lost_meanwhile_is_a_database_error_and_others_stay_what_they_are(empty_database):
    with pytest.raises(DatabaseError, match="broke the connection"), connected(empty_database) as connection:
        with psycopg.connect(empty_database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.errors.QueryCanceled), connected(empty_database, statement_timeout="10ms") as connection:
        connection.execute("SELECT pg_sleep(60)")


def test_a_setting_postgres_refuses_is_told(empty_database):
    with pytest.raises(DatabaseError, match="refused a setting: unrecognized configuration parameter"):
        connect(empty_database, no_such_setting="on")


def test_settings_given_in_the_address_win_over_ours(empty_database):
    with connected(f"{empty_database}?application_name=mine") as connection:
        assert connection.execute("SHOW application_name").fetchone() == ("mine",)
