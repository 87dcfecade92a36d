from projectors.record import Document
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="elasticsearch",
        entry="elasticsearch",
        kinds=(Document,),
        # A search sees what has been refreshed; the questions of the reader suite come right after the writes.
        settings=lambda address, folder: {"url": address("elasticsearch"), "refresh": True},
        silent=lambda port: {"url": f"http://127.0.0.1:{port}", "timeout_s": 1},
        concurrent=True,
        unreachable=lambda folder: {"url": "http://127.0.0.1:9"},
    ),
)
