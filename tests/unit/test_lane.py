"""What is kept of the reports of one partition."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

pytest.importorskip("confluent_kafka")

from confluent_kafka import KafkaError

from outbox.broker.confluent_producer import Lane


@dataclass
class At:
    place: int

    def offset(self) -> int:
        return self.place


def test_the_last_message_that_arrived_stands():
    lane = Lane()
    for place in (7, 9, 8):
        lane.report(None, At(place))
    assert (lane.last, lane.errors) == (8, [])


def test_every_error_is_told_whatever_arrived_before_or_after_it():
    lane = Lane()
    for error in (None, KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), KafkaError(KafkaError._PURGE_QUEUE), None):
        lane.report(error, At(1))
    assert [error.name() for error in lane.errors] == ["MSG_SIZE_TOO_LARGE", "_PURGE_QUEUE"]


def test_nothing_has_arrived_yet():
    assert (Lane().last, Lane().errors) == (None, [])
