"""The read side put together: which projections there are, and the stores that hold them, in either mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any, Final, Self, get_args, get_type_hints

from outbox.errors import SettingsError
from outbox.extras import how_to_install
from outbox.settings import Projecting, Settings
from outbox.wiring import WriteSide, open_write_side
from projectors.embedding import Embedder, embedder
from projectors.entity import EntityDocuments, EntityGraph
from projectors.holding import held
from projectors.layout import EMBEDDED, Layout
from projectors.pipeline import Plan
from projectors.projection import Projection
from projectors.query.protocol import Reader
from projectors.rebuild import first_build
from projectors.resilience import Resilience
from projectors.rows import Rows
from projectors.runner import Runner
from projectors.session import Stations
from projectors.sinks.protocol import Sink
from projectors.witness import Witness

WITNESSES: Final = "witness"
"""The folder, in the data folder, of what each projector knows of the log by itself."""

METHODS: Final = ("prepare", "apply", "scan", "switch", "drop")
"""What a sink must have."""
QUESTIONS: Final = ("nearest", "match", "neighbours", "paths", "find")
"""What a reader may have."""


@dataclass(frozen=True)
class ReadSide:
    """The parts of the read side, by projector name."""

    write: WriteSide
    given: Mapping[str, Projection] = field(default_factory=dict)
    """Projections given in Python, by the name the settings use for them."""

    @property
    def settings(self) -> Settings:
        return self.write.settings

    @cached_property
    def layout(self) -> Layout:
        """What the settings alone say of it."""
        return Layout(self.settings, self.write.dsn, self.given)

    @property
    def projecting(self) -> Mapping[str, Projecting]:
        """The projectors' settings; the mode's own three if none are set."""
        return self.layout.projecting

    def plan(self, name: str) -> Plan:
        """What a projector does. Raises :class:`~outbox.errors.SettingsError` for an unknown name."""
        if name not in self._plans:
            self._plans[name] = self._planned(name)
        return self._plans[name]

    def plans(self) -> dict[str, Plan]:
        return {name: self.plan(name) for name in self.projecting}

    def embedder(self, name: str) -> Embedder:
        """The projector's embedder, made once."""
        key = self.layout.of(name).embedder
        if key not in self._embedders:
            self._embedders[key] = embedder(key)
        return self._embedders[key]

    def stations(self, name: str, *, named: bool = False) -> Stations:
        """What a projector is connected to. ``named``: under ``kafka.member``, for who stays; a build leaves its group
        when it is done, or its partitions would wait for it as long as a session lasts."""
        return Stations(
            dsn=self.write.dsn,
            broker=lambda: self.write.broker(named=named),
            sink=lambda: self.open_sink(name),
            sink_in=lambda store: self.open_sink(name, store),
            registry=self.write.registry,
            resilience=Resilience(batch=self.layout.of(name).batch),
            group_prefix=self.settings.prefix,
            witness=Witness(self._witness_path(name)),
            late_s=self.write.safe_s,
        )

    @property
    def witnesses(self) -> Path:
        """The folder of what each projector knows of the log by itself; there is none on servers."""
        return self.settings.data_dir / WITNESSES

    def _witness_path(self, name: str) -> Path | None:
        """Beside the embedded stores; where they are servers, the broker is a witness that outlives us."""
        embedded = self.settings.mode == "embedded" and self.settings.data_dir.is_dir()
        return self.witnesses / f"{name}.json" if embedded else None

    def runner(self, name: str) -> Runner:
        """The projector, ready to run; it builds its first generation by itself."""
        plan, stations = self.plan(name), self.stations(name, named=True)
        return Runner(plan, stations, lambda stop: first_build(plan, stations, stop))

    def open_sink(self, name: str, store: str | None = None) -> AbstractContextManager[Sink]:
        """The projector's sink on its real store; ``store``: on another than its settings name.

        Opening it raises :class:`~projectors.holding.StoreHeld` if another process has the store's folder open.
        """
        return self._opened_sink(name, store or self.layout.of(name).store)

    def open_reader(self, name: str, store: str | None = None) -> AbstractContextManager[Reader] | None:
        """The projector's reader, opened like its sink; None if its store answers no questions."""
        store = store or self.layout.of(name).store
        if store not in _installed("outbox.readers").names:
            return None
        return self._opened(name, store, _load("outbox.readers", store))

    def answers(self, name: str, question: str, store: str | None = None) -> bool:
        """Whether the projector's store answers this question (a method of a reader), told without opening it:
        a store that is down must not change who is asked. Readers say it by what ``open_reader`` returns."""
        store = store or self.layout.of(name).store
        if store not in _installed("outbox.readers").names:
            return False
        return hasattr(_reads(store), question)

    def store_settings(self, store: str) -> dict[str, Any]:
        """A store's settings; in the embedded mode each has a folder of its own by default."""
        return self.layout.store_settings(store)

    @contextmanager
    def _opened_sink(self, name: str, store: str) -> Iterator[Sink]:
        with self._opened(name, store, _load("outbox.sinks", store)) as sink:
            lacking = [method for method in METHODS if not callable(getattr(sink, method, None))]
            if lacking:  # or it would be found out behind a long load, when the first is called
                raise SettingsError(
                    f"store {store!r}: its sink ({type(sink).__qualname__}) has no {', '.join(lacking)}:"
                    " see projectors/sinks/protocol.py"
                )
            yield sink

    @contextmanager
    def _opened(self, name: str, store: str, opening: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
        settings = self.store_settings(store)
        folder = settings.get("path") if store in EMBEDDED.values() else None
        made = opening(name, settings)
        if not isinstance(made, AbstractContextManager):
            raise SettingsError(
                f"store {store!r}: what opens it gives a {type(made).__name__}, no context manager: write"
                " @contextmanager above the function, and yield"
            )
        with held(Path(folder)) if folder else nullcontext(), made as opened:
            yield opened

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        return {}

    @cached_property
    def _embedders(self) -> dict[str, Embedder]:
        return {}

    def _planned(self, name: str) -> Plan:
        projection = self.layout.projection(name)
        topics = self.layout.topics(projection)
        embed = None if isinstance(projection, EntityGraph | EntityDocuments | Rows) else self._embed(name)
        return Plan(name, self.layout.of(name).store, projection, topics, embed)

    def _embed(self, name: str) -> Callable[..., Any]:
        # Made when the first text comes: a model is loaded by the process that needs it, not by every command.
        return lambda texts: self.embedder(name)(texts)  # noqa: PLW0108


@contextmanager
def open_read_side(settings: Settings, given: Mapping[str, Projection] | None = None) -> Iterator[ReadSide]:
    """The whole product, in either mode.

    Raises :class:`~outbox.errors.SettingsError` for a section of a store that is not installed: if its name is
    misspelt, its settings would be left out in silence.
    """
    for name in settings.stores:
        if name not in _installed("outbox.sinks").names:
            raise SettingsError(f"stores.{name}: {_no_store(name)}")
    with open_write_side(settings) as write:
        yield ReadSide(write, given or {})


class Running:
    """The relay and projectors as threads of this process: the embedded mode's way to run."""

    def __init__(self, side: ReadSide, names: list[str] | None = None, *, relay: bool = True) -> None:
        self._stop = threading.Event()
        jobs: dict[str, Callable[[threading.Event], None]] = {"relay": side.write.relay().run} if relay else {}
        jobs |= {name: side.runner(name).run for name in (side.projecting if names is None else names)}
        self._failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._guard, args=(run,), name=n) for n, run in jobs.items()]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        """Ask all to stop; leaving the block waits for them."""
        self._stop.set()

    def check(self) -> None:
        """Raise what ended a thread, if one has ended by itself."""
        if self._failures:
            raise self._failures[0]

    def wait(self, seconds: float) -> None:
        """Wait, but not longer than until something ends."""
        self._stop.wait(seconds)
        self.check()

    def _guard(self, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self._stop)
        except BaseException as error:  # noqa: BLE001  # handed to the main thread, which ends the process with it
            self._failures.append(error)
            self._stop.set()


@cache
def _installed(group: str) -> EntryPoints:
    """Kept: it is read from the metadata of every package there is, which takes 6 ms."""
    return entry_points(group=group)


@cache
def _reads(store: str) -> type[Any]:
    """The reader that a store's ``open_reader`` is annotated with. Kept: to evaluate annotations takes 0.2 ms, and
    each question asks for all projectors."""
    opening = _load("outbox.readers", store)
    try:
        kinds = get_args(get_type_hints(opening).get("return"))
    except (NameError, TypeError):  # a name that only a type checker sees; no function
        kinds = ()
    if not kinds or not any(hasattr(kinds[0], question) for question in QUESTIONS):
        raise SettingsError(
            f"store {store!r}: its open_reader must be annotated with the class of the reader that it yields, as in"
            " -> Iterator[MyReader], and that have a method of projectors/query/protocol.py"
        )
    reads: type[Any] = kinds[0]
    return reads


def _no_store(name: str) -> str:
    return f"there is no store {name!r}; installed are {', '.join(sorted(_installed('outbox.sinks').names))}"


def _load(group: str, name: str) -> Callable[..., Any]:
    found = list(_installed(group).select(name=name))
    if not found:
        raise SettingsError(_no_store(name))
    entry = found[0]
    try:
        loaded: Callable[..., Any] = entry.load()
    except Exception as error:
        if isinstance(error, ImportError) and entry.module.startswith("projectors."):
            raise SettingsError(
                f"store {name!r} needs a package that is not installed ({error.name}):"
                f" {how_to_install('embedded,servers')}"
            ) from error
        raise SettingsError(
            f"store {name!r} ({entry.value}, of another package) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return loaded
