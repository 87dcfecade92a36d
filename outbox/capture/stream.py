"""Streams from a capture's slot into the log: whole transactions, in the order of their commits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from outbox.capture.changes import Changes
from outbox.capture.writer import Writer
from outbox.relay.pgoutput import Begin, Commit
from outbox.relay.pgoutput_decoder import Decoder
from outbox.relay.replication import Replication

MESSAGES_A_STEP: Final = 20_000
"""A bound on one step, so that the leader looks up now and then."""
MARK_EVERY_S: Final = 5.0
"""How often the position is written while nothing happens that is captured, so that the source may forget its log;
and how often both servers get a sign of life: the source's wants one in ``wal_sender_timeout``, the log's ends a
leader's transaction that stands still for :data:`outbox.database.HALTED_MS`."""


@dataclass(slots=True)
class Stream:
    """One replication connection, streaming. Used by one thread; of no more use once a method has raised."""

    replication: Replication
    changes: Changes
    writer: Writer
    reached: int
    """Every transaction that committed before it has been taken."""
    until: int | None = None
    """Transactions whose commit lies at or after it are left for the next stream."""
    committed: int = 0
    """The position that was written last."""
    _decoder: Decoder = field(default_factory=Decoder)
    _open: bool = False
    _ended: bool = False
    _marked_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.committed = self.reached

    @property
    def done(self) -> bool:
        """Whether everything before ``until`` is in the log."""
        return (
            self.until is not None
            and not self.writer.waiting
            and not self.changes.again
            and (self._ended or self.reached >= self.until)
        )

    @property
    def amid(self) -> bool:
        """Whether a transaction has begun to come and has not ended."""
        return self._open

    def passed(self, lsn: int) -> bool:
        """Whether everything before ``lsn`` is in the log."""
        return self.reached >= lsn and not self._open and not self.writer.waiting

    def step(self) -> int:
        """Take what has come and put it into the log; returns how many messages there were.

        1. Read messages until there are no more, enough have come, or ``until`` is reached. 2. Commit the events of
        the transactions that are whole, with the position. 3. Tell the server. A crash before 2 leaves nothing; after
        it, the server gives again what the position says is in the log, and starts behind it.
        """
        count = self._read()
        if not self._open and (self.writer.waiting or self._due()):
            self.writer.commit(self.reached)
            self.committed = self.reached
            self._marked_at = time.monotonic()
            self.replication.confirm(self.reached)
        self.alive()
        return count

    def alive(self) -> None:
        """Give both servers a sign of life if one is due; in the midst of a large transaction nothing else does."""
        if self._due():
            self._marked_at = time.monotonic()
            self.replication.confirm(self.replication.confirmed)
            self.writer.stay()

    def wait(self, timeout_s: float) -> None:
        """Wait until something comes, at most so long."""
        self.replication.wait(timeout_s)

    def _read(self) -> int:
        for count in range(MESSAGES_A_STEP):
            if self._ended:
                return count
            message = self.replication.receive()
            if message is None:
                if not self._open:
                    self.reached = max(self.reached, self.replication.reached)
                return count
            self._take(message)
        return MESSAGES_A_STEP

    def _take(self, message: bytes) -> None:
        decoded = self._decoder.decode(message)
        if isinstance(decoded, Begin):
            if self.until is not None and decoded.lsn >= self.until:
                self._ended = True
                return
            self._open = True
            self.changes.begin(decoded)
        elif isinstance(decoded, Commit):
            self._open, self.reached = False, decoded.end_lsn
            self._ended = self.changes.again
        else:
            self.changes.take(decoded, len(message))

    def _due(self) -> bool:
        return time.monotonic() - self._marked_at > MARK_EVERY_S
