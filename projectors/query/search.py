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
from functools import partial
from itertools import zip_longest
from threading import Lock
from typing import Any, Final, Literal, Self, TypeVar, get_args

import psycopg

from outbox.database import NOT_MIGRATED, Connection, not_migrated, unreachable
from outbox.errors import InvalidEvent, SettingsError, StoreChanged, StoreError
from outbox.log.statement import Token
from projectors import placement
from projectors.placement import Place
from projectors.query.protocol import DEPTH_MAX, Direction, Hit, Neighbour, Path
from projectors.wait import wait_for
from projectors.wiring import ReadSide

RRF_K: Final = 60
"""The paper's constant."""

LIMIT_MAX: Final = 1_000
XIDS: Final = 2**64
"""Ids of transactions are below this."""
SERVING_S: Final = 0.5
"""How long an answer to "which generation serves" is believed; the one before it is kept after a switch."""

POOL: Final = 3
"""Threads of a hybrid question: one for each kind of store."""
WIDER: Final = 3
"""How many times more hits than wanted a hybrid question takes from each store, for ranks to meet."""

Question = Literal["nearest", "match", "neighbours", "paths", "find"]
"""A method of a reader."""
R = TypeVar("R")
T = TypeVar("T")
Ask = Callable[[str, Any, str], Sequence[R]]
"""Puts a question to a projector's reader, at a generation."""
_NONE: Final = object()


@dataclass(frozen=True, slots=True)
class Fused:
    """A hybrid answer: the hit, and its rank in each store that gave it (1 is best)."""

    hit: Hit
    ranks: Mapping[str, int]


class Search:
    """Answers questions from the serving generations. Use as a context manager; safe for one thread.

    Each is asked in the store that it was built in, though the settings may name another one by now: whoever has not
    heard of a change yet, or has heard of it before the new store is built, finds all there is.

    Stores are opened when first asked. Every method raises :class:`~outbox.errors.StoreUnavailable` if a store
    it needs is down, :class:`~outbox.errors.DatabaseError` if PostgreSQL is, and
    :class:`~outbox.errors.SettingsError` if no projector's store answers such questions
    (:class:`~outbox.errors.StoreChanged` if the one of the settings would, and what serves is elsewhere, or if these
    settings do not say how to reach that), and
    :class:`~outbox.errors.StoreError` if a store refuses (a vector of another length: the embedder was changed, and
    what serves was built with the one before); ``hybrid`` answers from the stores that can, and raises only if none
    can. ``limit`` is 1 to :data:`LIMIT_MAX` (more is cut to it).
    """

    def __init__(self, side: ReadSide) -> None:
        self._side = side
        self._stack = ExitStack()
        self._connection: Connection | None = None
        self._asking = {name: Lock() for name in side.projecting}
        self._readers: dict[tuple[str, str], Any] = {}
        self._serving: dict[str, tuple[Place, float]] = {}

    def __enter__(self) -> Self:
        self._stack.callback(self._disconnect)
        self._connected()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(POOL, "search"))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def semantic(self, text: str, limit: int = 10) -> list[Hit]:
        """The records whose meaning is nearest."""
        return _in_turn(self._ask("nearest", self._semantic(text, _bounded(limit))), limit)

    def text(self, text: str, limit: int = 10) -> list[Hit]:
        """The documents that match the words."""
        return _in_turn(self._ask("match", self._text(text, _bounded(limit))), limit)

    def neighbours(
        self, key: str, direction: Direction = "both", edges: Sequence[str] | None = None, limit: int = 50
    ) -> list[Neighbour]:
        """The nodes one edge away from ``key``; ``edges``: only along these kinds."""
        if direction not in get_args(Direction):
            raise InvalidEvent(f"direction is {direction!r}: {', '.join(get_args(Direction))}", "direction")
        most = _bounded(limit)
        return _in_turn(self._ask("neighbours", lambda _, r, g: r.neighbours(g, key, direction, edges, most)), limit)

    def paths(self, source: str, target: str, depth: int = 4, limit: int = 10) -> list[Path]:
        """The shortest paths between two nodes, of 1 to :data:`~projectors.query.protocol.DEPTH_MAX` edges."""
        if not 1 <= depth <= DEPTH_MAX:
            raise InvalidEvent(f"depth is {depth}: 1 to {DEPTH_MAX} edges", "depth")
        most = _bounded(limit)
        return _in_turn(self._ask("paths", lambda _, r, g: r.paths(g, source, target, depth, most)), limit)

    def find(self, name: str, limit: int = 10) -> list[Hit]:
        """The nodes with this key or name."""
        return _in_turn(self._ask("find", self._find(name, _bounded(limit))), limit)

    def hybrid(self, text: str, limit: int = 10) -> list[Fused]:
        """Semantic, text and name matches as one list; the stores are asked at the same time."""
        most = _bounded(limit)
        wide = min(most * WIDER, LIMIT_MAX)
        questions: Sequence[tuple[Question, Ask[Hit]]] = (
            ("nearest", self._semantic(text, wide)),
            ("match", self._text(text, wide)),
            ("find", self._find(text, most)),
        )
        self._look()
        asked = [(name, ask) for question, ask in questions for name in self._who(question)]
        if not asked:
            raise SettingsError("no projector's store answers questions: see the settings under projectors")
        tried = [self._pool.submit(self._tried, name, ask) for name, ask in asked]
        answers = [t.result() for t in tried]
        failures = [a for a in answers if isinstance(a, StoreError)]
        if len(failures) == len(answers):
            raise failures[0]
        return fuse([a for a in answers if not isinstance(a, StoreError)])[:most]

    def wait_for(
        self,
        token: Token | int | str,
        timeout_s: float = 10.0,
        projectors: Iterable[str] | None = None,
        check: Callable[[], object] | None = None,
    ) -> None:
        """Return once what the token's transaction wrote can be found, in all stores or in those named (by their
        projectors' names or their own). ``check`` is called in between: what it raises ends the wait.

        Raises :class:`~outbox.errors.WaitTimeout`, :class:`~outbox.errors.SettingsError` for an unknown name and
        :class:`~outbox.errors.InvalidEvent` for what is no token.
        """
        plans = self._side.plans()
        named = (projectors,) if isinstance(projectors, str) else projectors
        wanted = set(named) if named is not None else set(plans)
        if unknown := wanted - set(plans) - {plan.store for plan in plans.values()}:
            raise SettingsError(f"{', '.join(sorted(unknown))}: there is no projector and no store of that name")
        topics = {name: plan.topics for name, plan in plans.items() if wanted & {name, plan.store}}
        relay = self._side.settings.relay.name
        self._looked_up(lambda connection: wait_for(connection, _token(token), topics, timeout_s, relay, check))
        self._serving.clear()  # what was waited for is in those that serve now

    # ---------------------------------------------------------------- questions

    def _semantic(self, text: str, limit: int) -> Ask[Hit]:
        def ask(name: str, reader: Any, generation: str) -> Sequence[Hit]:
            answer: Sequence[Hit] = reader.nearest(generation, self._side.embedder(name)([text])[0], limit)
            return answer

        return ask

    def _text(self, text: str, limit: int) -> Ask[Hit]:
        return lambda _, reader, generation: reader.match(generation, text, limit)

    def _find(self, name: str, limit: int) -> Ask[Hit]:
        return lambda _, reader, generation: reader.find(generation, name, limit)

    # ------------------------------------------------------------------- asking

    def _ask(self, question: Question, ask: Ask[R]) -> list[Sequence[R]]:
        self._look()
        names = self._who(question)
        if not names:
            raise self._nobody(question)
        return [self._ask_one(name, ask) for name in names]

    def _who(self, question: Question) -> list[str]:
        return [name for name in self._side.projecting if self._side.answers(name, question, self._store(name))]

    def _nobody(self, question: Question) -> SettingsError:
        for name, projecting in self._side.projecting.items():
            if self._store(name) != projecting.store and self._side.answers(name, question):
                return placement.changed(name, self._serving[name][0], projecting.store)
        return SettingsError(f"no projector's store answers {question!r}: see the settings under projectors")

    def _store(self, name: str) -> str:
        """The store that the projector's serving generation is in, as far as is known."""
        place, _ = self._serving.get(name, (None, 0.0))
        return (place.store if place else None) or self._side.projecting[name].store

    def _ask_one(self, name: str, ask: Ask[R]) -> Sequence[R]:
        """Nothing before the projector's first generation serves. A reader is asked by one thread at a time."""
        place, _ = self._serving.get(name, (None, 0.0))
        if place is None:
            return []
        with self._asking[name]:
            return ask(name, self._reader(name, self._store(name)), place.generation)

    def _tried(self, name: str, ask: Ask[Hit]) -> Sequence[Hit] | StoreError:
        try:
            return self._ask_one(name, ask)
        except StoreError as error:
            return error

    def _reader(self, name: str, store: str) -> Any:
        if (name, store) not in self._readers:
            try:
                opened = self._side.open_reader(name, store)
                if opened is not None:
                    self._readers[name, store] = self._stack.enter_context(opened)
            except SettingsError as error:
                named = self._side.projecting[name].store
                if store == named:
                    raise
                changed = placement.changed(name, self._serving[name][0], named)
                raise StoreChanged(f"{changed}; here {store} cannot be asked: {error}") from error
        return self._readers[name, store]

    # --------------------------------------------------------------- PostgreSQL

    def _look(self) -> None:
        """Look up which generations serve, of those projectors whose answer is older than :data:`SERVING_S`."""
        now = time.monotonic()
        old = [name for name in self._side.projecting if now >= self._serving.get(name, (None, 0.0))[1]]
        if old:
            found = self._looked_up(partial(placement.serving, projectors=old))
            self._serving |= {name: (place, time.monotonic() + SERVING_S) for name, place in found.items()}

    def _looked_up(self, look: Callable[[Connection], T]) -> T:
        """A question to PostgreSQL; a connection that was lost is made anew for the next one."""
        connection = self._connected()
        try:
            return look(connection)
        except NOT_MIGRATED as error:
            raise not_migrated(error) from error
        except psycopg.OperationalError as error:
            raise unreachable(self._side.write.dsn, error) from error

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._side.write.connection()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()


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
            best = ranks.setdefault(hit.key, {})
            best[hit.store] = min(rank, best.get(hit.store, rank))
    order = sorted(scores, key=lambda key: (-scores[key], key))
    return [Fused(replace(hits[key], score=scores[key], store="+".join(ranks[key])), ranks[key]) for key in order]


def _in_turn(answers: Sequence[Sequence[R]], limit: int) -> list[R]:
    """The first of each answer, then the second of each: scores of different stores cannot be compared."""
    if len(answers) == 1:
        return list(answers[0])
    mixed = [one for rank in zip_longest(*answers, fillvalue=_NONE) for one in rank if one is not _NONE]
    return mixed[: min(limit, LIMIT_MAX)]  # type: ignore[return-value]


def _bounded(limit: int) -> int:
    if limit < 1:
        raise InvalidEvent(f"limit is {limit}: at least 1", "limit")
    return min(limit, LIMIT_MAX)


def _token(token: Token | int | str) -> Token:
    try:
        found = token if isinstance(token, Token) else Token(int(token))
    except (ValueError, TypeError):
        found = Token(0)
    if not 0 < found.xid < XIDS:
        raise InvalidEvent(f"{str(token)!r:.80} is no token: append gives one, as .token", "token")
    return found
