from projectors.record import Node
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="neo4j",
        entry="neo4j",
        kinds=(Node,),
        settings=lambda address, folder: {"url": address("neo4j")},
        silent=lambda port: {"url": f"bolt://127.0.0.1:{port}", "timeout_s": 1, "retry_s": 1},
        concurrent=True,
        unreachable=lambda folder: {"url": "bolt://127.0.0.1:9"},
    ),
)
