from projectors.record import Row, Value
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="postgres",
        entry="postgres",
        kinds=(Row, Value),
        settings=lambda address, folder: {"dsn": address("postgres")},
        unreachable=lambda folder: {"dsn": "host=127.0.0.1 port=9 dbname=postgres user=postgres"},
        silent=lambda port: {"dsn": f"host=127.0.0.1 port={port} dbname=postgres user=postgres", "timeout_s": 2},
        concurrent=True,
        over_batch=6_000,  # a statement takes 5,000 rows
    ),
)
