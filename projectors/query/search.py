"""Asking all stores at once: semantic, text, graph and hybrid questions, each answered by who serves it.

Hybrid is reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009): a record's score is the sum of
1 / (60 + rank) over the answers it stands in. It needs no common scale of scores, so it works across stores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, TypeVar

from outbox.errors import InvalidEvent, SettingsError, StoreUnavailable
from outbox.log.statement import Token
from projectors import ledger
from projectors.query.protocol import DEPTH_MAX, Direction, Hit, Neighbour, Path
from projectors.wait import wait_for
from projectors.wiring import ReadSide

RRF_K: Final = 60
"""The paper's constant."""

LIMIT_MAX: Final = 1_000
SERVING_S: Final = 0.5
"""How long an answer to "which generation serves" is believed; the one before it is kept after a switch."""

Question = Literal["nearest", "match", "neighbours"]
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Fused:
    """A hybrid answer: the hit, and its rank in each store that gave it (1 is best)."""

    hit: Hit
    ranks: Mapping[str, int]


class Search:
    """Answers questions from the serving generations. Use as a context manager; safe for one thread.

    Every method raises :class:`~outbox.errors.StoreUnavailable` if the store it needs is down; ``hybrid``
    answers from those that are up, and raises only if none is.
    """

    def __init__(self, side: ReadSide) -> None:
        self._side = side
        self._stack = ExitStack()
        self._readers: dict[str, Any] = {}
        self._serving: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        self._connection = self._side.write.connection()
        self._stack.callback(self._connection.close)
        self._pool = self._stack.enter_context(ThreadPoolExecutor(3, "search"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def semantic(self, text: str, limit: int = 10) -> list[Hit]:
        """The records whose meaning is nearest."""
        return self._ask("nearest", lambda name, reader, g: self._nearest(name, reader, g, text, _bounded(limit)))

    def text(self, text: str, limit: int = 10) -> list[Hit]:
        """The documents that match the words."""
        return self._ask("match", lambda _, reader, g: reader.match(g, text, _bounded(limit)))

    def neighbours(
        self, key: str, direction: Direction = "both", edges: Sequence[str] | None = None, limit: int = 50
    ) -> list[Neighbour]:
        """The nodes one edge away from ``key``."""
        return self._ask("neighbours", lambda _, r, g: r.neighbours(g, key, direction, edges, _bounded(limit)))

    def paths(self, source: str, target: str, depth: int = 4, limit: int = 10) -> list[Path]:
        """The shortest paths between two nodes."""
        if not 1 <= depth <= DEPTH_MAX:
            raise InvalidEvent(f"depth is {depth}: 1 to {DEPTH_MAX} edges", "depth")
        return self._ask("neighbours", lambda _, r, g: r.paths(g, source, target, depth, _bounded(limit)))

    def find(self, name: str, limit: int = 10) -> list[Hit]:
        """The nodes with this key or name."""
        return self._ask("neighbours", lambda _, r, g: r.find(g, name, _bounded(limit)))

    def hybrid(self, text: str, limit: int = 10) -> list[Fused]:
        """Semantic, text and name matches as one list; asked at the same time."""
        wide = _bounded(limit * 3)
        asked: list[Callable[[], list[Hit]]] = []
        if self._who("nearest"):
            asked.append(lambda: self.semantic(text, wide))
        if self._who("match"):
            asked.append(lambda: self.text(text, wide))
        if self._who("neighbours"):
            asked.append(lambda: self.find(text, limit))
        self._warm()
        answers = [self._pool.submit(_tried, a) for a in asked]
        results = [a.result() for a in answers]
        failures = [r for r in results if isinstance(r, StoreUnavailable)]
        if failures and len(failures) == len(results):
            raise failures[0]
        return fuse([r for r in results if not isinstance(r, StoreUnavailable)])[:limit]

    def wait_for(
        self, token: Token | int | str, timeout_s: float = 10.0, projectors: Iterable[str] | None = None
    ) -> None:
        """Return once what the token's transaction wrote can be found. Names of projectors or of stores."""
        wanted = set(projectors) if projectors is not None else None
        topics = {
            name: plan.topics
            for name, plan in self._side.plans().items()
            if wanted is None or name in wanted or plan.store in wanted
        }
        if wanted is not None and not topics:
            raise SettingsError(f"none of {', '.join(sorted(wanted))} is a projector or a store")
        wait_for(self._connection, _token(token), topics, timeout_s, self._side.settings.relay.name)

    # ---------------------------------------------------------------- inside

    def _nearest(self, name: str, reader: Any, generation: str, text: str, limit: int) -> Sequence[Hit]:
        vector = self._side.embedder(name)([text])[0]
        answer: Sequence[Hit] = reader.nearest(generation, vector, limit)
        return answer

    def _ask(self, question: Question, ask: Callable[[str, Any, str], Sequence[R]]) -> list[R]:
        names = self._who(question)
        if not names:
            raise SettingsError(f"no projector's store answers {question!r}: see the settings under projectors")
        answers: list[R] = []
        for name in names:
            generation = self._generation(name)
            if generation is not None:
                answers += ask(name, self._reader(name), generation)
        return answers

    def _who(self, question: Question) -> list[str]:
        return [n for n in self._side.projecting if hasattr(self._reader(n), question)]

    def _warm(self) -> None:
        for name in self._side.projecting:
            self._generation(name)

    def _reader(self, name: str) -> Any:
        if name not in self._readers:
            opened = self._side.open_reader(name)
            self._readers[name] = None if opened is None else self._stack.enter_context(opened)
        return self._readers[name]

    def _generation(self, name: str) -> str | None:
        known, until = self._serving.get(name, (None, 0.0))
        if time.monotonic() < until:
            return known
        found = ledger.serving(self._connection, name)
        if found is not None:
            self._serving[name] = (found, time.monotonic() + SERVING_S)
        return found


def fuse(answers: Sequence[Sequence[Hit]], k: int = RRF_K) -> list[Fused]:
    """Reciprocal rank fusion; ties by key, so that the order is the same every time."""
    scores: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    ranks: dict[str, dict[str, int]] = {}
    for answer in answers:
        for rank, hit in enumerate(answer, 1):
            scores[hit.key] = scores.get(hit.key, 0.0) + 1.0 / (k + rank)
            if hit.key not in hits or (hit.snippet and not hits[hit.key].snippet):
                hits[hit.key] = hit
            ranks.setdefault(hit.key, {})[hit.store] = rank
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return [Fused(replace(hits[key], score=scores[key], store="+".join(ranks[key])), ranks[key]) for key in order]


def _tried(ask: Callable[[], list[Hit]]) -> list[Hit] | StoreUnavailable:
    try:
        return ask()
    except StoreUnavailable as error:
        return error


def _bounded(limit: int) -> int:
    if limit < 1:
        raise InvalidEvent(f"limit is {limit}: at least 1", "limit")
    return min(limit, LIMIT_MAX)


def _token(token: Token | int | str) -> Token:
    try:
        return token if isinstance(token, Token) else Token(int(token))
    except ValueError as error:
        raise InvalidEvent(f"{token!r} is no token: append gives one", "token") from error
