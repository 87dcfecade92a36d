"""A member of a consumer group over kafka-python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, errors
from kafka import TopicPartition as KafkaTopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor

from outbox.broker.kafka_python_errors import opened, translated, waiting
from outbox.broker.kafka_python_join import Joining
from outbox.broker.protocol import Delivery, Start, TopicPartition
from outbox.broker.settings import KafkaSettings
from outbox.broker.topics import decode_headers, decode_key
from outbox.logs import logger

log: Final = logger("outbox.broker")

SLICE_S: Final = 0.1
"""A wait is cut into slices, as partitions assigned during one can only be started after it."""
PROBE_EVERY_S: Final = 5.0
"""While nothing comes, the servers are asked this often whether they are there: the client does not tell."""
PROBE_WAIT_MS: Final = 5_000
FETCH_WAIT_MAX_MS: Final = 500
HEARTBEATS_PER_SESSION: Final = 3
PARTITION_FETCH_BYTES: Final = 1024 * 1024


class Assigned(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called on the client's own thread: notes what is to be started, and keeps it from being read till then."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.pending: set[Any] = set()
        """Replaced as a whole with every assignment, so that a start under way cannot empty a newer one."""

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        for partition in assigned:
            self._consumer.pause(partition)
            # Any position will do: it keeps the client from looking up the committed one.
            self._consumer.seek(partition, 0)
        self.pending = set(assigned)

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:
        self.pending = self.pending - set(revoked)


class KafkaPythonConsumer:
    """See :class:`outbox.broker.protocol.Consumer`. Partitions are shared out by range, as the other client does,
    so that a group may have members of both."""

    def __init__(self, settings: KafkaSettings, group: str, topics: Sequence[str], start: Start) -> None:
        self._settings = settings
        self._topics = list(topics)
        self._start = start
        self._probed_at = time.monotonic()
        session_ms = int(settings.session_timeout_s * 1000)
        with translated(settings):
            self._consumer: Any = opened(
                KafkaConsumer,
                settings,
                **waiting(max(settings.timeout_ms, session_ms)),
                group_id=group,
                group_instance_id=settings.member,
                enable_auto_commit=False,
                auto_offset_reset="none",
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                check_crcs=True,
                partition_assignment_strategy=(RangePartitionAssignor,),
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=session_ms // HEARTBEATS_PER_SESSION,
                max_poll_interval_ms=int(settings.poll_interval_max_s * 1000),
                fetch_max_wait_ms=min(FETCH_WAIT_MAX_MS, settings.timeout_ms // 2),
                max_partition_fetch_bytes=max(PARTITION_FETCH_BYTES, settings.max_message_bytes),
                metrics_enabled=False,
            )
        self._assigned = Assigned(self._consumer)
        self._joining = Joining(self._consumer)
        self._consumer.subscribe(self._topics, listener=self._assigned)

    def poll(self, max_messages: int, timeout_s: float) -> Sequence[Delivery]:
        """See the protocol."""
        until = time.monotonic() + timeout_s
        while True:
            left = max(0.0, until - time.monotonic())
            with translated(self._settings):
                records = self._fetch(max_messages, min(left, SLICE_S))
                if records:
                    self._probed_at = time.monotonic()
                    return records
                self._probe()
            if left <= SLICE_S:
                return ()

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Sent without waiting for the answer."""
        positions = {KafkaTopicPartition(*tp): OffsetAndMetadata(at, "", -1) for tp, at in offsets.items()}
        if positions:
            with contextlib.suppress(errors.KafkaError, OSError):
                self._consumer.commit_async(positions)

    def assignment(self) -> frozenset[TopicPartition]:
        """Those that have been started."""
        waiting = self._assigned.pending
        return frozenset(TopicPartition(*tp) for tp in self._consumer.assignment() or () if tp not in waiting)

    def close(self) -> None:
        """Leave the group, so that the others need not wait for the session to run out. Under a name it stays in it."""
        with contextlib.suppress(errors.KafkaError, OSError):
            self._consumer.close(autocommit=False, timeout_ms=PROBE_WAIT_MS)

    def _begin(self) -> None:
        """Start each pending partition where it is to start; those that have been taken away meanwhile are left."""
        pending = self._assigned.pending
        for partition in sorted(pending):
            at = self._start(TopicPartition(*partition))
            with contextlib.suppress(ValueError, KeyError):
                self._place(partition, at)
            pending.discard(partition)

    def _place(self, partition: Any, at: int | None) -> None:
        if at is None:
            self._consumer.seek_to_beginning(partition)
        else:
            self._consumer.seek(partition, at)
        self._consumer.resume(partition)

    def _fetch(self, max_messages: int, timeout_s: float) -> list[Delivery]:
        if not self._joining.joined(timeout_s):
            return []
        self._begin()
        try:
            found = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=max_messages)
        except errors.OffsetOutOfRangeError as error:
            self._restart(error.args[0])
            return []
        return [
            Delivery(r.topic, r.partition, r.offset, decode_key(r.key), r.value, decode_headers(r.headers))
            for records in found.values()
            for r in records
        ]

    def _restart(self, wanted: Mapping[Any, int]) -> None:
        for partition, offset in wanted.items():
            log.warning(
                "broker.gap",
                topic=partition.topic,
                partition=partition.partition,
                reason="the wanted offset is gone: reading from the earliest",
                detail=f"offset {offset}",
            )
            self._consumer.seek_to_beginning(partition)

    def _probe(self) -> None:
        if time.monotonic() - self._probed_at > PROBE_EVERY_S:
            partition = KafkaTopicPartition(self._topics[0], 0)
            self._consumer.end_offsets([partition], timeout_ms=min(PROBE_WAIT_MS, self._settings.timeout_ms))
            self._probed_at = time.monotonic()
