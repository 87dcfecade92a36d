"""Cost against size as pictures, drawn from the files of results: ``python -m benchmarks.pictures``.

Plain SVG, readable on light and dark pages; ``make bench`` writes them anew into docs/pictures. A picture whose results
are not there is left as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from benchmarks import results

FOLDER: Final = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 80, 150, 40, 50
COLOURS: Final = (
    "#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444",
    "#14b8a6", "#ca8a04", "#64748b", "#ec4899", "#1e3a8a",
)  # fmt: skip
STYLE: Final = """
text { font: 12px sans-serif; fill: #1f2937 } .title { font-size: 14px; font-weight: bold }
.grid { stroke: #9ca3af; stroke-opacity: .35 }
@media (prefers-color-scheme: dark) { text { fill: #e5e7eb } }
"""

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points by the name of their line."""


@dataclass(frozen=True)
class Picture:
    """What is drawn of one file of results.

    ``question`` matches those that are points: group ``x`` is the size, ``line`` the line's name, ``least`` the size
    that the reference's figure is of. Without ``least`` the reference is a line of its own.
    """

    name: str
    results: str
    question: re.Pattern[str]
    title: str
    across: str
    up: str


PICTURES: Final = (
    Picture(
        "append", "growth", re.compile(r"append, (?P<x>[\d,]+) events a transaction"),
        "Appending, one writer", "events in a transaction", "events/s",
    ),
    Picture(
        "drain", "growth", re.compile(r"drain of (?P<x>[\d,]+) waiting rows beside one of (?P<least>[\d,]+): rate"),
        "A relay that drains into Kafka", "rows that wait", "rows/s",
    ),
    Picture(
        "rebuild", "rebuild_growth",
        re.compile(r"rebuild of (?P<x>[\d,]+) events beside one of (?P<least>[\d,]+): rate"),
        "Rebuilding a table of PostgreSQL", "events in the log", "events/s",
    ),
    Picture(
        "rebuild-memory", "rebuild_growth",
        re.compile(r"rebuild of (?P<x>[\d,]+) events beside one of (?P<least>[\d,]+): memory"),
        "Memory of the process that rebuilds", "events in the log", "MiB",
    ),
    Picture(
        "latency", "latency",
        re.compile(r"commit to a consumer of Kafka, (?P<x>[\d,]+)/s, (?P<line>(?!.* beside ).+)"),
        "Commit to a consumer of Kafka", "events a second", "ms",
    ),
)  # fmt: skip


def draw(found: Path, to: Path) -> None:
    """Draw those whose results are in the folder ``found``, as NAME.svg."""
    for picture in PICTURES:
        path = found / f"{picture.results}.json"
        lines = points(picture, results.read(path)) if path.exists() else {}
        if lines:
            to.mkdir(parents=True, exist_ok=True)
            (to / f"{picture.name}.svg").write_text(svg(picture, lines), "utf-8")


def points(picture: Picture, documents: Sequence[Mapping[str, Any]]) -> Series:
    """The picture's points, in the order of their sizes."""
    lines: dict[str, dict[float, float]] = {}
    for document in documents:
        if match := picture.question.fullmatch(document["question"]):
            groups = match.groupdict()
            line = groups.get("line") or "ours"
            lines.setdefault(line, {})[_number(groups["x"])] = document["ours"]
            if least := groups.get("least"):
                lines[line][_number(least)] = document["reference"]
            elif document["reference"]:
                lines.setdefault(document["reference_name"], {})[_number(groups["x"])] = document["reference"]
    return {name: sorted(line.items()) for name, line in lines.items()}


def svg(picture: Picture, lines: Series) -> str:
    """Sizes grow by factors, so their axis is logarithmic; the other begins at zero."""
    sizes = sorted({x for line in lines.values() for x, _ in line})
    top = _rounded_up(max(y for line in lines.values() for _, y in line))
    span = math.log(sizes[-1] / sizes[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / sizes[0]) / span * (WIDTH - LEFT - RIGHT)
        return LEFT + across, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    middle = (WIDTH - RIGHT + LEFT) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><style>{STYLE}</style>',
        f'<title>{escape(picture.title)}</title><text class="title" x="{LEFT}" y="20">{escape(picture.title)}</text>',
        f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">{escape(picture.across)}</text>',
        f'<text x="14" y="{TOP - 8}">{escape(picture.up)}</text>',
    ]
    for quarter in range(5):
        x, y = at(sizes[0], top * quarter / 4)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * quarter / 4:,g}</text>')
    for size in sizes:
        x, y = at(size, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{size:,g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        places = [at(*point) for point in line]
        parts += _line(name, COLOURS[number % len(COLOURS)], TOP + 18 * number, places)
    return "\n".join([*parts, "</svg>", ""])


def _line(name: str, colour: str, legend_y: int, places: Sequence[tuple[float, float]]) -> Iterator[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in places:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    yield f'<rect x="{WIDTH - RIGHT + 20}" y="{legend_y}" width="12" height="12" fill="{colour}"/>'
    yield f'<text x="{WIDTH - RIGHT + 38}" y="{legend_y + 10}">{escape(name)}</text>'


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _rounded_up(figure: float) -> float:
    """The next of 1, 2, 4, 5, 8, 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(figure))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= figure)


if __name__ == "__main__":
    draw(results.FOLDER, FOLDER)
