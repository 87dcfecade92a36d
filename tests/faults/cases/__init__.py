"""The faults, a file for each part of the product that is hurt. Importing this registers all of them."""

from tests.faults.cases import projectors, relay, writers  # noqa: F401
