from projectors.record import Node
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="neo4j",
        entry="neo4j",
        kinds=(Node,),
        settings=lambda address, folder: {"url": address("neo4j")},
        concurrent=True,
        unreachable=lambda folder: {"url": "bolt://127.0.0.1:9"},
    ),
)
