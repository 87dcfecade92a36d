from projectors.record import Document
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="tantivy",
        entry="tantivy",
        kinds=(Document,),
        settings=lambda address, folder: {"path": str(folder / "text")},
        concurrent=True,  # within a process
    ),
)
