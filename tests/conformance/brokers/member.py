"""A member of a group in a process of its own, to be killed: prints its assignment whenever it changes.

With a name and a session's length it is a member with a name, which only Kafka has; being fenced ends it.
"""

from __future__ import annotations

import sys

from outbox.broker import Broker
from outbox.errors import MemberFenced
from tests.conformance.brokers import KINDS, earliest, open_kafka_client


def main(kind: str, address: str, group: str, topic: str, *named: str) -> None:
    consumer = opened(kind, address, *named).consumer(group, [topic], earliest)
    shown = -1
    while True:
        consumer.poll(100, 0.2)
        if len(consumer.assignment()) != shown:
            shown = len(consumer.assignment())
            print(shown, flush=True)


def opened(name: str, address: str, member: str | None = None, session_s: str = "6") -> Broker:
    if member is not None:
        return open_kafka_client(name, address, 30.0, member=member, session_timeout_s=float(session_s))
    return next(kind for kind in KINDS if kind.name == name).open(address, 30.0)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MemberFenced:
        print("fenced", flush=True)
