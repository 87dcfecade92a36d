"""A second process that writes: it opens a sink, then applies the slices of a history that it is told.

Started with one argument, JSON: entry, projection, settings, generation, kind, seed, length, keys. Each line
of its input, ``START END``, is a slice; it says ``applying`` before and ``applied`` after each. It ends with
its input.
"""

from __future__ import annotations

import json
import sys

from projectors import record
from tests.conformance.sinks import history, opener


def main() -> None:
    told = json.loads(sys.argv[1])
    kind = getattr(record, told["kind"])
    changes = history(kind, told["seed"], told["length"], told["keys"])
    with opener("outbox.sinks", told["entry"])(told["projection"], told["settings"]) as sink:
        print("open", flush=True)
        for line in sys.stdin:
            start, end = map(int, line.split())
            print("applying", flush=True)
            sink.apply(told["generation"], changes[start:end])
            print("applied", flush=True)


if __name__ == "__main__":
    main()
