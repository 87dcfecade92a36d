"""The faults, a file for each part of the product that is hurt. Importing this registers all of them."""

from tests.faults.cases import edges, events, projectors, rebuilds, relay, servers, stores, writers  # noqa: F401
