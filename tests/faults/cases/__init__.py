"""The faults, a file for each part of the product that is hurt. Importing this registers all of them."""

from tests.faults.cases import (  # noqa: F401
    edges,
    events,
    exactly_once,
    projectors,
    rebuilds,
    relay,
    restores,
    servers,
    slots,
    stores,
    topics,
    writers,
)
