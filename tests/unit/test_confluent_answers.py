"""What is left of clients over librdkafka that got an error for their last answer."""

import gc
import weakref
from concurrent.futures import Future

import confluent_kafka
import pytest
from confluent_kafka import admin

from outbox.broker.confluent_member import Name
from outbox.broker.confluent_producer import ConfluentProducer
from outbox.broker.confluent_transactions import ConfluentClient
from outbox.broker.settings import KafkaSettings
from outbox.errors import BrokerUnavailable

SETTINGS = KafkaSettings(bootstrap="127.0.0.1:1", client="confluent", member="m")


@pytest.fixture
def opened(monkeypatch):
    """The clients that were opened and are there still, where Python does not collect by itself."""
    clients = weakref.WeakSet()

    class Failing:
        def __init__(self, options):
            clients.add(self)

        def _ask(self, asked, **_):
            future = Future()
            future.set_exception(confluent_kafka.KafkaException(confluent_kafka.KafkaError(-185)))
            return dict.fromkeys(asked, future)

        describe_consumer_groups = list_offsets = _ask

    monkeypatch.setattr(admin, "AdminClient", Failing)
    gc.disable()
    yield clients
    gc.enable()


def test_one_that_was_asked_who_has_a_name(opened):
    with pytest.raises(BrokerUnavailable):
        Name(confluent_kafka, {}, SETTINGS, "group").taken()
    assert not opened


def test_one_that_was_asked_where_the_notes_end(opened):
    class Reading:
        def get_watermark_offsets(self, place, timeout):
            return 0, 0

    with pytest.raises(confluent_kafka.KafkaException):
        ConfluentClient(confluent_kafka, {}, SETTINGS, None, "relay")._ends(Reading())
    assert not opened


def test_a_producer_whose_last_flush_fails_is_closed():
    did = []

    class Fatal:
        def purge(self, **_):
            did.append("purge")

        def flush(self, timeout_s):
            raise SystemError("a gap")

        def close(self, timeout_s):
            did.append("close")

    producer = ConfluentProducer(confluent_kafka, {}, SETTINGS, None)
    producer._producer = Fatal()
    producer.discard()
    assert did == ["purge", "close"]
