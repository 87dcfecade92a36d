from projectors.record import Node
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="ladybug",
        entry="ladybug",
        kinds=(Node,),
        settings=lambda address, folder: {"path": str(folder / "graph")},
        concurrent=True,  # within a process
    ),
)
