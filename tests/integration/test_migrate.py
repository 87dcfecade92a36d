"""Migrations: once each, in order, whoever runs them and however often."""

from outbox.database import connected
from outbox.log.migrate import migrate, migrations


def test_an_empty_database_gets_every_migration_once(empty_database):
    with connected(empty_database) as connection:
        assert [m.number for m in migrate(connection)] == [m.number for m in migrations()]
        assert migrate(connection) == []


def test_each_test_has_a_database_of_its_own(database, module_database, new_database):
    assert len({database, module_database, new_database()}) == 3
    with connected(database) as connection:
        assert migrate(connection) == []
