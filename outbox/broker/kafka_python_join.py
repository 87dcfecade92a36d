"""Joining a group with kafka-python, apart from polling.

kafka-python 3.0.12 waits for a join only inside ``poll`` and at most as long as that poll. A join that ends between
two polls is begun again (a member busy between polls may so keep its group rebalancing), and one begun because a
topic's partitions became known is forgotten: nobody takes up the answer, heartbeats stay off, and the member reads
its old partitions for ever. So a join runs here as one task of the client's own thread, however long it takes.

Nor does it say that a heartbeat was answered with FENCED_INSTANCE_ID (another process has the member's name): it stops
its heartbeats and reads on. So that is asked here.

A member that comes back under its name is given what it had, without anybody assigning anew (Apache Kafka, KIP-345).
If it had nothing, because it went before it knew the partitions of its topics, it would have nothing for ever: only
who assigns asks again once they are known. So a named member that is given nothing joins once more, as a member the
group knows: if it leads the group all is assigned anew, if not nothing happens.
"""

from __future__ import annotations

import threading
from typing import Any

from kafka import errors


class Joining:
    """The join under way, if any. Reaches into the client's coordinator, as no public call joins."""

    def __init__(self, consumer: Any) -> None:
        self._coordinator: Any = consumer._coordinator  # noqa: SLF001
        self._task: Any = None
        self._done = threading.Event()
        self._asks_again = self._coordinator.group_instance_id is not None

    def joined(self, timeout_s: float) -> bool:
        """Whether the member is in its group; waits at most ``timeout_s`` for a join. Raises kafka-python's errors."""
        if self._fenced():
            raise errors.FencedInstanceIdError
        if self._task is None and self._wanted():
            self._begin()
        if self._task is None:
            return True
        if not self._done.wait(timeout_s):
            return False
        task, self._task = self._task, None
        if task.failed():
            raise task.exception
        if self._asks_again and self._given_nothing():
            self._asks_again = False
            self._begin()
            return False
        return True

    def _given_nothing(self) -> bool:
        coordinator = self._coordinator
        return not (coordinator._is_leader or coordinator._subscription.assigned_partitions())  # noqa: SLF001

    def _fenced(self) -> bool:
        """Whether it has joined and yet its heartbeats are off: no other way leads there."""
        coordinator = self._coordinator
        if self._task is not None or coordinator.group_instance_id is None:
            return False
        with coordinator._lock:  # noqa: SLF001 - held where a join ends
            return bool(coordinator.stable() and not self._wanted() and not coordinator._heartbeat_enabled)  # noqa: SLF001

    def _wanted(self) -> bool:
        return bool(self._coordinator.rejoining or self._coordinator.need_rejoin())

    def _begin(self) -> None:
        self._done.clear()
        self._coordinator.request_rejoin()
        self._task = self._coordinator._manager.call_soon(self._coordinator.ensure_active_group_async)  # noqa: SLF001
        self._task.add_both(lambda _result: self._done.set())
