"""What a consumer over librdkafka answers while it is being closed, which no test on real servers can time."""

from outbox.broker.confluent_consumer import ConfluentConsumer


class Closing:
    """librdkafka's consumer, which waits for a thread that has gone, with Python's lock in its hand."""

    def __init__(self):
        self.assigned = []

    def memberid(self):
        raise AssertionError("waits for ever")

    unsubscribe = memberid

    def assign(self, partitions):
        self.assigned.append(partitions)


def test_partitions_that_come_while_it_is_closed_are_not_taken_and_its_member_id_is_not_asked_for():
    consumer, closing = ConfluentConsumer.__new__(ConfluentConsumer), Closing()
    consumer._consumer, consumer._name, consumer._leaving = None, object(), True
    consumer._on_assign(closing, [])
    assert closing.assigned == [[]]


def test_a_session_that_is_found_to_be_over_while_it_is_closed_is_left_as_it_is():
    consumer = ConfluentConsumer.__new__(ConfluentConsumer)
    consumer._consumer, consumer._name, consumer._lost = None, object(), set()
    consumer._on_lost(Closing(), [])
