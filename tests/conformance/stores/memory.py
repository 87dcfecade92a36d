from projectors.record import Document, Node, Row, Value, Vector
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="memory",
        entry="memory",
        kinds=(Vector, Node, Document, Row, Value),
        settings=lambda address, folder: {"space": str(folder)},
        concurrent=True,
        durable=False,
    ),
)
