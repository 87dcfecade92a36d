"""The readers against an independent reading of the whole standard library."""

from __future__ import annotations

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from outbox.codec import default_registry
from outbox.ingest.python import read_python
from tests.e2e import independent

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SKIP = frozenset({"site-packages", "test", "tests", "idle_test", "__pycache__"})
FILES = independent.files(LIBRARY, ".py", SKIP)


@pytest.fixture(scope="module")
def read() -> dict[Path, dict]:
    names = {p: ".".join(p.relative_to(LIBRARY).with_suffix("").parts) for p in FILES}
    return {path: read_python(path.read_bytes(), name) for path, name in names.items()}


def test_every_definition_of_the_standard_library_has_its_key(read):
    """Key sets are equal file by file, overloads and definitions in branches included. Orders may differ: the
    compiler takes the ``else`` of a ``try`` before its handlers, the reader goes by lines."""
    assert len(read) > 500
    for path, data in read.items():
        assert sorted(p["key"] for p in data["parts"]) == sorted(independent.python(path.read_bytes()).keys), path


def test_the_kinds_are_counted_alike_by_scopes_and_by_tokens(read):
    kinds: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for path, data in read.items():
        kinds += Counter(p["kind"] for p in data["parts"])
        expected += independent.python(path.read_bytes()).kinds
        words += independent.definitions_by_tokens(path.read_bytes())
    assert kinds == expected
    assert words == {"class": kinds["class"], "def": kinds["function"] + kinds["method"]}


def test_the_log_takes_all_of_it(read):
    registry = default_registry()
    assert all(registry.encode("entity.upserted", data) for data in read.values())


def test_links_within_the_library_lead_somewhere(read):
    """Of the links to modules of the library, nearly all must lead to a record that is there: those that do not
    name what is only made at run time, or sits in an extension module."""
    keys = {f"python-{d['name']}#{p['key']}" for d in read.values() for p in d["parts"]}
    streams = {f"python-{d['name'].removesuffix('.__init__')}" for d in read.values()}
    own = lead = 0
    for data in read.values():
        stream = f"python-{data['name']}#"
        targets = [
            k["target"] for e in (data, *data["parts"]) for k in e["links"] if k["kind"] in ("calls", "contains")
        ]
        own += sum(t.startswith(stream) for t in targets)
        lead += sum(t.startswith(stream) and t in keys for t in targets)
    assert own == lead > 20_000
    imports = Counter(k["target"] for d in read.values() for k in d["links"] if k["kind"] == "imports")
    assert sum(n for t, n in imports.items() if t in streams) > 0.7 * imports.total()
