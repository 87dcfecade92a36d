"""What the processes count, for Prometheus. Registered once; served by ``--metrics-port``."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

RELAY_PUBLISHED: Final = Counter("outbox_relay_published", "Rows published to the broker.")
RELAY_ERRORS: Final = Counter("outbox_relay_errors", "Passing failures of the broker or the database.")
RELAY_LEADER: Final = Gauge("outbox_relay_leader", "1 while this process leads.")

EVENTS_APPLIED: Final = Counter("outbox_projector_events", "Events applied.", ["projector"])
CHANGES_APPLIED: Final = Counter("outbox_projector_changes", "Record changes given to the store.", ["projector"])
STORE_ERRORS: Final = Counter("outbox_projector_store_errors", "Passing failures of the store.", ["projector"])
STREAMS_PARKED: Final = Counter("outbox_projector_parked", "Streams parked as dead letters.", ["projector"])
APPLY_SECONDS: Final = Histogram("outbox_projector_apply_seconds", "Time of one apply.", ["projector"])
BREAKER_OPEN: Final = Gauge("outbox_projector_breaker_open", "1 while the store is left alone.", ["projector"])
