"""Connections: what is said when there is none."""

import pytest

from outbox.capture.source import session
from outbox.database import connect
from outbox.errors import DatabaseError

NO_DSN = [
    "postgres//user:geheim@host/name",  # a colon is missing
    "postgresql://user:ge%heim@host/name",  # a password as it is, not as a URL has it
    "postgresql://user:geheim@[::1/name",
    "host=h password='geheim",
]


@pytest.mark.parametrize("dsn", NO_DSN)
@pytest.mark.parametrize("ask", [connect, session])
def test_an_address_that_is_none_is_refused_in_one_line_without_its_password(ask, dsn):
    with pytest.raises(DatabaseError, match="address of PostgreSQL") as refused:
        ask(dsn)
    assert "heim" not in str(refused.value)
    assert "\n" not in str(refused.value)
