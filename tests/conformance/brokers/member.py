"""A member of a group in a process of its own, to be killed: prints its assignment whenever it changes."""

from __future__ import annotations

import sys

from tests.conformance.brokers import KINDS, earliest


def main(name: str, address: str, group: str, topic: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == name)
    consumer = kind.open(address, 30.0).consumer(group, [topic], earliest)
    shown = -1
    while True:
        consumer.poll(100, 0.2)
        if len(consumer.assignment()) != shown:
            shown = len(consumer.assignment())
            print(shown, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
