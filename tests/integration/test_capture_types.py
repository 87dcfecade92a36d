"""Every type of column: a row read from a snapshot is the same event's data as one read from the stream, exactly."""

import json

import pytest
from fastavro import parse_schema
from fastavro.validation import validate

from tests.capturing import captured

VALUES = [
    ("boolean", "true", True),
    ("smallint", "-32768", -32768),
    ("integer", "2147483647", 2147483647),
    ("bigint", "-9223372036854775808", -9223372036854775808),
    ("oid", "4294967295", 4294967295),
    ("real", "0.1", 0.1),
    ("double precision", "0.1::float8 + 0.2::float8", 0.30000000000000004),
    ("double precision", "'NaN'", "NaN"),
    ("real", "'-Infinity'", "-Infinity"),
    ("numeric", "123456789012345678901234567890.000100", "123456789012345678901234567890.000100"),
    ("numeric(10, 3)", "1.5", "1.500"),
    ("numeric", "'NaN'", "NaN"),
    ("text", "''", ""),
    ("text", r"E'a\tb\n\\.\\N'", "a\tb\n\\.\\N"),
    ("text", r"'\N'", r"\N"),
    ("varchar(9)", "'äöü𐍈'", "äöü𐍈"),
    ("char(4)", "'ab'", "ab  "),
    ("name", "'n'", "n"),
    ('"char"', "'c'", "c"),
    ("bytea", r"'\x00ff5c'", b"\x00\xff\\"),
    ("uuid", "'00000000-0000-0000-0000-0000000000AA'", "00000000-0000-0000-0000-0000000000aa"),
    ("date", "'2026-02-28'", "2026-02-28"),
    ("date", "'infinity'", "infinity"),
    ("date", "'0044-03-15 BC'", "0044-03-15 BC"),
    ("time", "'12:34:56.789'", "12:34:56.789"),
    ("timetz", "'12:34:56+02'", "12:34:56+02"),
    ("timestamp", "'2026-02-28 12:00:00.000001'", "2026-02-28 12:00:00.000001"),
    ("timestamptz", "'2026-02-28 12:00:00.000001+02'", "2026-02-28 10:00:00.000001+00"),
    ("interval", "'1 year 2 days -3 hours'", "1 year 2 days -03:00:00"),
    ("json", """'{"a" : 1.0,  "a": null}'""", '{"a" : 1.0,  "a": null}'),
    ("jsonb", """'{"b": 1.0, "a": [1]}'""", '{"a": [1], "b": 1.0}'),
    ("inet", "'10.0.0.1/8'", "10.0.0.1/8"),
    ("cidr", "'10.0.0.0/8'", "10.0.0.0/8"),
    ("macaddr", "'08:00:2b:01:02:03'", "08:00:2b:01:02:03"),
    ("money", "1234.5", "$1,234.50"),
    ("bit(3)", "B'101'", "101"),
    ("varbit", "B'10'", "10"),
    ("int4range", "'[1,5)'", "[1,5)"),
    ("int4multirange", "'{[1,2),[5,6)}'", "{[1,2),[5,6)}"),
    ("point", "'(1,2)'", "(1,2)"),
    ("tsvector", "'a:1 b:2'", "'a':1 'b':2"),
    ("pg_lsn", "'16/B374D848'", "16/B374D848"),
    ("xid8", "'12345678901'", "12345678901"),
    ("regclass", "'kinds'", "public.kinds"),
    ("mood", "'glad'", "glad"),
    ("small", "42", 42),
    ("pair", "ROW(1, 'x y')", '(1,"x y")'),
    ("int[]", "'{1,NULL,3}'", [1, None, 3]),
    ("int[]", "'{}'", []),
    ("int[]", "'{{1,2},{3,4}}'", "{{1,2},{3,4}}"),
    ("int[]", "'[0:1]={1,2}'", "[0:1]={1,2}"),
    ("text[]", """'{"a,b","c\\"d",NULL,"NULL"," "}'""", ["a,b", 'c"d', None, "NULL", " "]),
    ("numeric(5, 2)[]", "'{1,2.5}'", ["1.00", "2.50"]),
    ("float8[]", "'{0.1,NaN}'", [0.1, "NaN"]),
    ("boolean[]", "'{t,f}'", [True, False]),
    ("bytea[]", r"""'{"\\x00ff"}'""", [b"\x00\xff"]),
    ("timestamptz[]", "'{2026-02-28 12:00:00+02}'", ["2026-02-28 10:00:00+00"]),
    ("mood[]", "'{sad,glad}'", ["sad", "glad"]),
    ("small[]", "'{1}'", [1]),
    ("int2vector", "'1 2'", "1 2"),
    ("box[]", "'{(1,1),(0,0);(2,2),(0,0)}'", ["(1,1),(0,0)", "(2,2),(0,0)"]),
]
MADE = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN small AS int CHECK (value < 100);
CREATE TYPE pair AS (a int, b text);
"""


def test_every_type_is_the_same_from_a_snapshot_and_from_the_stream_and_as_the_derived_schema_says(
    new_database, empty_database
):
    with captured(new_database(), empty_database) as one:
        name = one.db.info.dbname
        for setting, value in (
            ("DateStyle", "German"),
            ("TimeZone", "Asia/Tokyo"),
            ("bytea_output", "escape"),
            ("IntervalStyle", "iso_8601"),
            ("extra_float_digits", "-5"),
        ):
            one.db.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")  # what others set is no matter
        one.db.execute(MADE + "CREATE TABLE kinds (id int PRIMARY KEY)")
        for place, (kind, _, _) in enumerate(VALUES):
            one.db.execute(f"ALTER TABLE kinds ADD COLUMN c{place} {kind}")
        row = ", ".join(value for _, value, _ in VALUES)
        one.db.execute(f"INSERT INTO kinds VALUES (1, {row})")
        one.db.execute("INSERT INTO kinds VALUES (2)")
        one.add("kinds")
        one.drain()
        one.db.execute(f"INSERT INTO kinds VALUES (3, {row})")
        one.db.execute("INSERT INTO kinds VALUES (4)")
        one.drain()
        read = {e.stream: e.data["columns"] for e in one.events()}
        wanted = {f"c{place}": value for place, (_, _, value) in enumerate(VALUES)}
        for stream in ("kinds-1", "kinds-3"):
            got = {n: v for n, v in read[stream].items() if n != "id"}
            different = {VALUES[int(n[1:])][0]: (got[n], wanted[n]) for n in wanted if repr(got[n]) != repr(wanted[n])}
            assert not different, stream
        for stream in ("kinds-2", "kinds-4"):
            assert all(v is None for n, v in read[stream].items() if n != "id")
        (described,) = [e for e in one.all_events() if e.type == "table.described"]
        schema = parse_schema(json.loads(described.data["avro"]))
        assert validate(read["kinds-3"], schema, raise_errors=True)
        assert len(one.events()) == 4  # another look found nothing to say
        one.capture().again("kinds")
        one.drain()
        assert len(one.events()) == 4


def test_a_database_without_an_encoding_is_refused(address):
    import psycopg

    from outbox.capture.capture import Capture
    from outbox.codec import default_registry
    from outbox.database import connected
    from outbox.errors import SettingsError
    from outbox.log.migrate import migrate
    from tests.conftest import _dsn

    server, name = address("postgres"), "outbox_test_ascii"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name}")
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        try:
            with connected(_dsn(server, name)) as fresh:
                migrate(fresh)
            with pytest.raises(SettingsError, match="SQL_ASCII"):
                Capture(_dsn(server, name), default_registry()).add(["pg_class"])
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
