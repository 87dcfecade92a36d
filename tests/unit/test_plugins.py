"""Sinks and readers of other packages: what is wrong with one is said in one line that names it."""

from __future__ import annotations

import uuid
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from outbox.codec import default_registry
from outbox.errors import SettingsError
from outbox.settings import Projecting, Settings
from outbox.wiring import WriteSide
from projectors import wiring
from projectors.wiring import ReadSide

WHOLE = """
from collections.abc import Iterator
from contextlib import contextmanager
class Sink:
    def prepare(self, generation): pass
    def apply(self, generation, changes): pass
    def scan(self, generation, keys=None): return iter(())
    def switch(self, generation): pass
    def drop(self, generation): pass
class Reader:
    def match(self, generation, text, limit): return []
"""


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A read side of one projector, whose store is the module of this source, from another package."""

    def plug(source: str, name: str = "opening") -> ReadSide:
        store, module = f"store{uuid.uuid4().hex}", f"plugin_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(WHOLE + source)
        monkeypatch.syspath_prepend(tmp_path)
        points = {
            g: EntryPoints([EntryPoint(store, f"{module}:{name}", g)]) for g in ("outbox.sinks", "outbox.readers")
        }
        monkeypatch.setattr(wiring, "_installed", points.__getitem__)
        projectors = {"docs": Projecting(projection="documents", store=store)}
        settings = Settings(data_dir=tmp_path, projectors=projectors)
        return ReadSide(WriteSide(settings, "", default_registry()))

    return plug


def test_a_whole_one_is_opened(plugged: Any) -> None:
    source = "@contextmanager\ndef opening(projection, settings) -> Iterator[{}]:\n    yield {}()\n"
    with plugged(source.format("Sink", "Sink")).open_sink("docs") as sink:
        assert type(sink).__name__ == "Sink"
    side = plugged(source.format("Reader", "Reader"))
    assert side.answers("docs", "match")
    assert not side.answers("docs", "nearest")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "plugin_.*:opening, of another package.*AttributeError.*opening"),
        ("import no_such_driver", "of another package.*no_such_driver"),
        ("import os; os.no_such", "of another package.*AttributeError"),
        ("def opening(", "of another package.*SyntaxError"),
        ("def opening(projection, settings):\n    return Sink()", "gives a Sink, no context manager"),
        ("def opening(projection, settings):\n    yield Sink()", "gives a generator, no context manager"),
        (
            "del Sink.switch, Sink.drop\n@contextmanager\ndef opening(projection, settings):\n    yield Sink()",
            r"its sink \(Sink\) has no switch, drop",
        ),
    ],
)
def test_a_sink_that_cannot_be_used_says_why(plugged: Any, source: str, said: str) -> None:
    """One without `switch` was found out behind the whole load, and all ended in tracebacks. A driver of another
    package was said to be an extra of ours."""
    side = plugged(source)
    with pytest.raises(SettingsError, match=f"store 'store.*{said}") as raised, side.open_sink("docs"):
        pass
    assert "pip install" not in str(raised.value)


@pytest.mark.parametrize("kind", ["", " -> Reader", " -> Iterator['Unknown']", " -> Iterator[int]"])
def test_a_reader_that_does_not_say_what_it_answers_is_refused(plugged: Any, kind: str) -> None:
    """Of one that says something else no question was ever asked, and a name that cannot be found was a traceback."""
    side = plugged(f"@contextmanager\ndef opening(projection, settings){kind}:\n    yield Reader()\n")
    with pytest.raises(SettingsError, match=r"open_reader must be annotated.*Iterator\[MyReader\]"):
        side.answers("docs", "match")


def test_a_package_of_an_extra_of_ours_is_still_named(monkeypatch: pytest.MonkeyPatch, plugged: Any) -> None:
    side = plugged("")
    store = side.settings.projectors["docs"].store
    ours = EntryPoint(store, "projectors.sinks.no_such_module:open_sink", "outbox.sinks")
    monkeypatch.setattr(wiring, "_installed", lambda group: EntryPoints([ours]))
    with (
        pytest.raises(
            SettingsError, match=r"needs a package that is not installed.*pip install '\.\[embedded,servers\]'"
        ),
        side.open_sink("docs"),
    ):
        pass
