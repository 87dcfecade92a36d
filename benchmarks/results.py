"""What a benchmark found: one object a question, ours beside its reference.

A file of results is a JSON list of the objects that :meth:`Result.document` makes. ``ratio`` is ours to the
reference's: the median of the ratios within each round, since neighbours in time share the machine's weather.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final, Literal

FOLDER: Final = Path(__file__).parent / "results"
KEYS: Final = ("question", "ours", "reference", "reference_name", "unit", "ratio", "target", "met", "samples")
"""What each object of a file has at least."""

QUANTILES: Final = {"p50": 49, "p99": 98}
"""Each by its place among the hundredths."""

Bound = Literal["at_least", "at_most"]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound of the ratio or, without a reference, of our own figure."""

    value: float
    bound: Bound = "at_least"

    def met_by(self, figure: float) -> bool:
        return figure >= self.value if self.bound == "at_least" else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.bound == 'at_least' else '≤'} {self.value:g}"


def at_least(value: float) -> Target:
    return Target(value)


def at_most(value: float) -> Target:
    return Target(value, "at_most")


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question. ``samples`` has the figures of each round by contender, ``ours`` first."""

    question: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    target: Target | None = None
    note: str = ""

    @property
    def ours(self) -> float:
        return median(self.samples["ours"])

    @property
    def reference_name(self) -> str | None:
        return next((name for name in self.samples if name != "ours"), None)

    @property
    def reference(self) -> float | None:
        return None if self.reference_name is None else median(self.samples[self.reference_name])

    @property
    def ratios(self) -> list[float]:
        """Ours to the reference's, round by round; without a reference there are none."""
        if self.reference_name is None:
            return []
        pairs = zip(self.samples["ours"], self.samples[self.reference_name], strict=True)
        return [ours / other for ours, other in pairs if other]

    @property
    def ratio(self) -> float | None:
        return median(self.ratios) if self.ratios else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """The quartiles of the ratios (of our own figures, without a reference); None for a single round."""
        figures = self.ratios or list(self.samples["ours"])
        if len(figures) < 2:
            return None
        low, _, high = quantiles(figures, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.target.met_by(self.ours if self.ratio is None else self.ratio)

    def document(self) -> dict[str, Any]:
        """The object in a file of results."""
        return {
            "question": self.question,
            "ours": rounded(self.ours),
            "reference": rounded(self.reference),
            "reference_name": self.reference_name,
            "unit": self.unit,
            "ratio": rounded(self.ratio),
            "spread": None if self.spread is None else [rounded(end) for end in self.spread],
            "target": self.target and self.target.value,
            "bound": self.target and self.target.bound,
            "met": self.met,
            "samples": {name: [rounded(figure) for figure in figures] for name, figures in self.samples.items()},
            "note": self.note,
        }


def beside(
    question: str,
    samples: Mapping[str, Sequence[float]],
    contenders: tuple[str, str],
    unit: str,
    target: Target | None = None,
    note: str = "",
) -> Result:
    """The result for two of the contenders that took turns: ours and one reference, by their names in ``samples``."""
    ours, reference = contenders
    return Result(question, unit, {"ours": samples[ours], reference: samples[reference]}, target, note)


def at_quantiles(
    question: str, unit: str, rounds: Mapping[str, Sequence[Sequence[float]]], targets: Mapping[str, Target]
) -> Iterator[Result]:
    """A result for each of :data:`QUANTILES`, which ``targets`` names. ``rounds``: the single figures of each, by
    contender, ``ours`` first; beside a reference a target is for the ratio."""
    for name, place in QUANTILES.items():
        samples = {who: [quantiles(figures, n=100)[place] for figures in each] for who, each in rounds.items()}
        yield Result(f"{question}, {name}", unit, samples, targets.get(name))


def rounded(figure: float | None) -> float | None:
    """Four significant digits: more would be noise."""
    if figure is None:
        return None
    shown = float(f"{figure:.4g}")
    return int(shown) if shown.is_integer() else shown


def write(path: Path, results: Sequence[Result], about: Mapping[str, Any]) -> None:
    """Write a file of results; each object also says what they were measured on (``about``)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [result.document() | dict(about) for result in results]
    path.write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of results. Raises ValueError if one lacks a key of :data:`KEYS`."""
    documents: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    for document in documents:
        missing = [key for key in KEYS if key not in document]
        if missing:
            raise ValueError(f"{path.name}: a result without {', '.join(missing)}")
    return documents
