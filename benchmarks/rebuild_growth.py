"""Does a rebuild stay as fast, and as small, as the log grows? ``python -m benchmarks.rebuild_growth [--sizes N ...]``

Each size is a log of its own, ten events a stream, rebuilt by a process that does nothing else; its rate and the most
memory it had stand beside those at the smallest size. The store is PostgreSQL, the cheapest: our own part shows.
"""

from __future__ import annotations

from typing import Final

from benchmarks.rebuild import growth
from benchmarks.running import options, run

SIZES: Final = (10_000, 30_000, 100_000)


def main() -> None:
    parser = options(__doc__)
    shown = " ".join(map(str, SIZES))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help=f"events, the smallest first ({shown})")
    given = parser.parse_args()
    if given.quick:
        given.sizes = (100, 200)
    run("rebuild_growth", ["postgres"], growth, given)


if __name__ == "__main__":
    main()
