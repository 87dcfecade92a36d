"""Which files are read, and what their streams are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from outbox.ingest.errors import SourceError
from outbox.ingest.naming import Namer
from outbox.ingest.options import Options
from outbox.ingest.scan import scan, sources


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    return root


def found(root: Path, **options) -> list[str]:
    return scan(sources([root])[0], Options(**options)).files


def test_python_and_text_are_found_in_order_and_nothing_else(tmp_path):
    make(tmp_path, "b.py", "a/z.md", "a/B.TXT", "c.rst", "d.markdown", "e.pyi", "f.bin", "g.PY", "README")
    assert found(tmp_path) == ["a/B.TXT", "a/z.md", "b.py", "c.rst", "d.markdown"]


def test_hidden_cached_foreign_and_virtual_folders_are_left_out(tmp_path):
    make(tmp_path, ".git/a.py", "__pycache__/b.py", "node_modules/c.md", "env/pyvenv.cfg", "env/lib/d.py")
    make(tmp_path, "conda/conda-meta/x.txt", "conda/e.py", "kept/f.py", ".hidden.py")
    assert found(tmp_path) == ["kept/f.py"]


def test_skip_patterns_match_names_and_paths(tmp_path):
    make(tmp_path, "a/tests/x.py", "a/b.py", "c/b.py")
    assert found(tmp_path, skip=("tests", "c/*")) == ["a/b.py"]


def test_a_loop_of_links_ends_and_real_folders_give_the_names(tmp_path):
    make(tmp_path, "real/x.py")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "real")
    (tmp_path / "self.py").symlink_to(tmp_path / "self.py")
    result = scan(sources([tmp_path])[0], Options())
    assert result.files == ["real/x.py"]
    assert list(result.refused) == ["self.py"]


def test_a_linked_folder_from_outside_is_read(tmp_path):
    outside = make(tmp_path / "outside", "x.py")
    root = make(tmp_path / "root", "y.py")
    (root / "linked").symlink_to(outside)
    assert found(root) == ["linked/x.py", "y.py"]


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    assert found(tmp_path) == []


def test_a_file_above_the_bound_is_refused_by_name(tmp_path):
    (tmp_path / "big.py").write_text("x" * 11)
    result = scan(sources([tmp_path])[0], Options(file_bytes_max=10))
    assert result.files == [] and result.refused == {"big.py": "11 bytes are more than 10"}


def test_more_files_than_the_bound_is_an_error(tmp_path):
    make(tmp_path, "a.py", "b.py")
    with pytest.raises(SourceError, match="more than 1 files"):
        found(tmp_path, files_max=1)


def test_a_missing_path_is_one_clear_error(tmp_path):
    with pytest.raises(SourceError, match=r"cannot read .*/missing: No such file"):
        sources([tmp_path / "missing"])


@pytest.mark.parametrize("path", ["", "name="])
def test_an_empty_path_is_not_taken_for_the_current_folder(path, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("private")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="is empty"):
        sources([path])


def test_two_folders_of_one_name_are_refused_until_one_is_named(tmp_path):
    a, b = make(tmp_path / "a/src", "x.py"), make(tmp_path / "b/src", "x.py")
    with pytest.raises(SourceError, match="both named 'src'"):
        sources([a, b])
    assert [s.name for s in sources([a, f"other={b}"])] == ["src", "other"]
    assert [s.name for s in sources([a, str(a) + "/", a / "."])] == ["src"]


def test_a_single_module_belongs_to_the_folder_above_its_package(tmp_path):
    make(tmp_path / "src", "pkg/__init__.py", "pkg/mod.py", "pkg/other.py")
    source = sources([tmp_path / "src/pkg/mod.py"])[0]
    assert (source.name, source.only) == ("src", {"pkg/mod.py"})
    assert scan(source, Options()).files == ["pkg/mod.py"]


def test_a_single_text_file_belongs_to_its_folder(tmp_path):
    make(tmp_path / "docs", "a.md", "b.md")
    source = sources([tmp_path / "docs/a.md"])[0]
    assert (source.name, scan(source, Options()).files) == ("docs", ["a.md"])


def test_a_single_file_of_another_kind_is_refused(tmp_path):
    make(tmp_path, "a.bin")
    with pytest.raises(SourceError, match="neither Python"):
        sources([tmp_path / "a.bin"])


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("a.py", "python-a"),
        ("pkg/__init__.py", "python-pkg"),
        ("pkg/sub/mod.py", "python-pkg.sub.mod"),
        ("space/mod.py", "python-space.mod"),
        ("my-app/run.py", "python-root/my-app/run.py"),
        ("2to3.py", "python-root/2to3.py"),
        ("pkg/class.py", "python-root/pkg/class.py"),
        ("both.py", "python-root/both.py"),
        ("both/__init__.py", "python-both"),
        ("first.py", "python-first"),
        ("first/hidden.py", "python-root/first/hidden.py"),
        ("docs/a.md", "text-root/docs/a.md"),
    ],
)
def test_a_stream_is_the_module_python_would_import_or_else_the_path(path, stream):
    files = ["both.py", "both/__init__.py", "first.py", "first/hidden.py", "pkg/__init__.py", path]
    assert Namer("root", files).name(path).stream == stream


@pytest.mark.parametrize(
    ("path", "stream", "is_package"),
    [
        ("__init__.py", "python-pkg", True),
        ("mod.py", "python-pkg.mod", False),
        ("sub/__init__.py", "python-pkg.sub", True),
    ],
)
def test_a_root_that_is_a_package_is_the_first_component(path, stream, is_package):
    name = Namer("pkg", ["__init__.py", "mod.py", "sub/__init__.py"]).name(path)
    assert (name.stream, name.is_package) == (stream, is_package)


def test_a_package_whose_name_is_no_identifier_is_named_by_path():
    assert Namer("my-pkg", ["__init__.py"]).name("__init__.py").stream == "python-my-pkg/__init__.py"


def test_a_prefix_stands_after_the_category():
    namer = Namer("root", ["a.py"], "v2/")
    assert [namer.name(p).stream for p in ("a.py", "x-y.py", "b.md")] == [
        "python-v2/a",
        "python-v2/root/x-y.py",
        "text-v2/root/b.md",
    ]
