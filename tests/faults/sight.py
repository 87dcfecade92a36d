"""Waiting for what a run's processes have done, by looking into its database."""

from __future__ import annotations

from tests.faults import broker
from tests.faults.until import PATIENCE_S, until
from tests.faults.wiring import Wiring


class Sight(Wiring):
    """What is there by now."""

    def serving(self) -> bool:
        """Whether every projector has a generation that serves."""
        return bool(
            self.value("SELECT count(*) FROM outbox.generation WHERE state = 'serving'") == len(self.plan.kinds)
        )

    def appended(self, more: int, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the log has so many more events."""
        count = "SELECT count(*) FROM outbox.event"
        goal = self.value(count) + more
        until(lambda: self.value(count) >= goal, f"{more} more events in the log", timeout_s)

    def caught_up(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every projector's checkpoints have reached what is on the topic by now."""
        ends = broker.ends(self.place_of_broker())
        behind = """
        SELECT count(*) FROM unnest(%s::int[], %s::bigint[]) e (partition, place)
        CROSS JOIN (SELECT projector, generation FROM outbox.generation WHERE state = 'serving') g
        WHERE NOT EXISTS (
            SELECT FROM outbox.checkpoint c WHERE c.projector = g.projector AND c.generation = g.generation
            AND c.partition = e.partition AND c."offset" >= e.place)
        """
        until(
            lambda: self.value(behind, list(ends), list(ends.values())) == 0, "the projectors have caught up", timeout_s
        )

    def published(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the relay has published all that is committed by now."""
        waiting = """
        SELECT count(*) FROM outbox.outbox o WHERE NOT EXISTS (
            SELECT FROM outbox.relay_cursor c WHERE pg_visible_in_snapshot(o.xid, c.a))
        """
        until(lambda: self.value(waiting) == 0, "the relay has published everything", timeout_s)
