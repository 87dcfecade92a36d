"""After a write that came late: write once more, for the same streams, what the log says by now.

A store without compare-and-set (Chroma) is guarded by reading, deciding and writing. A process that is paused in
between (SIGSTOP, a virtual machine that stands still, a long swap) loses its partitions, and when it goes on its
write may lie over what its successor has written since. It cannot know before; but afterwards it can see that the
write took longer than its partitions were safe, and the log has what belongs there. The same holds for a write of
which the answer never came: the server may do it later.

It is not written at once: the successor may be about to write the same keys. The store is looked at for a second
first, and what was written is looked at again, until nothing needs to be written any more.

What remains: a process that is killed right after its late write. ``verify`` finds what that leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

from outbox.codec import Registry
from outbox.database import Connection, connected
from outbox.errors import RecordsRefused, StoreUnavailable
from outbox.log.read import read_below
from outbox.logs import logger
from projectors.decoding import Deferring
from projectors.model import fold_each
from projectors.pipeline import Plan, embedded
from projectors.projection import resets_of
from projectors.record import Change
from projectors.resilience import Wrapped
from projectors.sinks.protocol import Sink

log = logger("outbox.projector")

DOUBTFUL_MAX: Final = 10_000
"""Streams remembered of writes that failed; of more than that the oldest are forgotten (and left to verify)."""

ROUNDS_MAX: Final = 4
"""Where records are still behind the log after so many rounds, nobody but this process is there to write them."""

LOOKS: Final = 20
LOOK_S: Final = 0.05
"""How often, and how far apart, the store is looked at before it is written again: whoever has the partitions now may
be about to write just that, and two writers of one key at the same moment is what must not be."""

END: Final = 2**62

Newest = Callable[[Mapping[str, set[str]]], Iterable[Change]]
"""Of streams and keys of theirs: the changes that bring the keys, and all else of the streams, up to date."""


Doubts = dict[str, dict[str, set[str]]]
"""By generation and stream: the keys of writes of which the answer never came. They outlive the session."""


def newest_of(dsn: str, plan: Plan, registry: Registry) -> Newest:
    """Folds the streams from the log, on a connection opened for it: it is rarely asked, and by the writer's thread."""

    def newest(keys: Mapping[str, set[str]]) -> Iterator[Change]:
        with connected(dsn) as connection:
            yield from read(connection, keys)

    def read(connection: Connection, keys: Mapping[str, set[str]]) -> Iterator[Change]:
        resets = resets_of(plan.projection)
        events = read_below(connection, dict.fromkeys(keys, END), Deferring(registry))
        for stream, history in groupby(events, key=lambda e: e.stream):
            now = fold_each(plan, stream, history, resets)
            live = now.changes()
            yield from embedded(live, plan.embed)
            # Whoever writes this may be behind the log: what comes and goes in between must not be left standing
            # when its older changes are applied after this.
            for key in sorted((keys[stream] | now.ever) - {c.key for c in live}):
                yield Change(key, stream, now.good_version, None)

    return newest


class Late(Wrapped):
    """Watches how long each write takes. Goes right round the sink, so that no waiting of ours is counted.

    ``late_s``: how long a member of the group that stands still keeps its partitions, at least. ``doubts``: those that
    this process has from before.
    """

    def __init__(
        self,
        sink: Sink,
        newest: Newest,
        late_s: float,
        clock: Callable[[], float] | None = None,
        doubts: Doubts | None = None,
    ) -> None:
        super().__init__(sink)
        self._newest = newest
        self._late_s = late_s
        self._clock = clock or _clock
        self._doubts: Doubts = {} if doubts is None else doubts

    def apply(self, generation: str, changes: Sequence[Change]) -> None:
        """As the sink does; then, if that came late, with what the log says now."""
        started = self._clock()
        try:
            self._sink.apply(generation, changes)
        except StoreUnavailable:
            self._doubt(generation, changes)
            raise
        finally:
            took_s = self._clock() - started
            if took_s > self._late_s:
                log.warning("a write came late: what the log says now is written again", took_s=round(took_s, 1))
                self._doubt(generation, changes)
        self._put_right(generation)

    def _put_right(self, generation: str) -> None:
        """Compare what is doubtful with the log, and write what is behind it.

        A round that writes may itself write over something newer, so the last one is one that has nothing to write.
        """
        keys = self._doubts.pop(generation, None)
        if not keys:
            return
        try:
            for _ in range(ROUNDS_MAX):
                behind = self._left_behind(generation, list(self._newest(keys)))
                if not behind:
                    return
                keys = _keys(behind)
                with suppress(RecordsRefused):  # whoever folds these events next parks the stream
                    self._sink.apply(generation, behind)
        except Exception:
            self._doubts[generation] = keys
            raise

    def _left_behind(self, generation: str, changes: Sequence[Change]) -> Sequence[Change]:
        """All of the changes, if some are of records that nobody brings up to date; else none.

        All, since what is written now may be ahead of this process's own place in the log: of the other streams the
        tombstones keep its older changes from bringing back what by then has gone.
        """
        for look in range(LOOKS):
            if look:
                time.sleep(LOOK_S)
            if not self._behind(generation, changes):
                return ()
        return changes

    def _behind(self, generation: str, changes: Sequence[Change]) -> bool:
        held = {stored.key: stored.version for stored in self._sink.scan(generation, [c.key for c in changes])}
        return any(_is_behind(change, held.get(change.key)) for change in changes)

    def _doubt(self, generation: str, changes: Iterable[Change]) -> None:
        for other in self._doubts.keys() - {generation}:
            del self._doubts[other]  # it serves no more
        doubtful = self._doubts.setdefault(generation, {})
        for stream, keys in _keys(changes).items():
            doubtful.setdefault(stream, set()).update(keys)
        for stream in list(doubtful)[:-DOUBTFUL_MAX]:
            del doubtful[stream]


def _keys(changes: Iterable[Change]) -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {}
    for change in changes:
        keys.setdefault(change.stream, set()).add(change.key)
    return keys


def _is_behind(change: Change, held: int | None) -> bool:
    """``held``: the version of the key's live record, if there is one."""
    if change.record is None:
        return held is not None and held <= change.version
    return held is None or held < change.version


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
