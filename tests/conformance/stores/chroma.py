from projectors.record import Vector
from tests.conformance.sinks import Store

STORES = (
    Store(
        name="chroma_embedded",
        entry="chroma",
        kinds=(Vector,),
        settings=lambda address, folder: {"path": str(folder / "chroma")},
        over_batch=6_000,  # get_max_batch_size() is 5,461
    ),
    Store(
        name="chroma_server",
        entry="chroma",
        kinds=(Vector,),
        settings=lambda address, folder: {"url": address("chroma")},
        unreachable=lambda folder: {"url": "http://127.0.0.1:9"},
        silent=lambda port: {"url": f"http://127.0.0.1:{port}", "timeout_s": 1},
        over_batch=6_000,
    ),
)
