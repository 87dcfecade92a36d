"""The full-text indexes that Tantivy sinks and readers of one process share: one folder per generation.

Tantivy lets one ``IndexWriter`` per index live, whatever process it is in, and holds a lock on a file (which
the system lets go of when the process dies). So the writers of one process are shared, and opened late: a
process that only reads takes no lock. Its errors are ``ValueError``, told apart by their text.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tantivy

from outbox.errors import SettingsError, StoreError, StoreUnavailable
from projectors.sinks.given import only
from projectors.sinks.shared import Shared
from projectors.sinks.turns import acquired

WRITER_BYTES: Final = 64 * 1024 * 1024
"""Memory in which a writer collects documents before it writes a segment."""
META: Final = "meta.json"
"""Tantivy's own name for what makes a folder an index."""
WAIT_S: Final = 30.0
"""Longest wait for another sink of this process that writes the same index."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


def schema() -> Any:
    """The fields of an index.

    ``key`` is one term. ``slot`` spreads the documents evenly over 64 bits, so that a scan can take them in
    parts. ``title`` and ``text`` are searched, in words of any script. ``body`` is JSON: the stream, the kind
    and the properties as they came. ``mark``: see :mod:`projectors.marks`.
    """
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("key", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_integer_field("version", stored=True, fast=True)
    builder.add_unsigned_field("slot", fast=True)
    builder.add_boolean_field("live", stored=True, indexed=True)
    builder.add_text_field("title", stored=True)
    builder.add_text_field("text", stored=True)
    builder.add_bytes_field("body", stored=True)
    builder.add_unsigned_field("mark", fast=True)  # last: queries find the fields of older indexes by their place
    return builder.build()


@dataclass(slots=True)
class Opened:
    """An open index. Searchers need no lock; whoever writes holds :meth:`alone` from reading the versions on."""

    index: Any
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writer: Any = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other sink writes meanwhile, of this process or of another: the writer has the lock on the file."""
        with acquired(self._lock, WAIT_S, "tantivy: another sink is writing"):
            if self._writer is None:
                with told_apart():
                    self._writer = self.index.writer(heap_size=WRITER_BYTES, num_threads=1)
            yield

    def replace(self, documents: Mapping[str, Any]) -> None:
        """Put each document in the place of all those of its key, in one commit, durable and visible at the end."""
        with told_apart():
            try:
                self._commit(documents)
            except BaseException:
                self._discard()
                raise
            self.index.reload()

    def _commit(self, documents: Mapping[str, Any]) -> None:
        for key, document in documents.items():
            self._writer.delete_documents_by_term("key", key)
            self._writer.add_document(document)
        self._writer.commit()

    def searcher(self) -> Any:
        """A snapshot of what is committed, by this process or another."""
        with told_apart():
            self.index.reload()
            return self.index.searcher()

    def is_marked(self, searcher: Any) -> bool:
        """Whether the index has marks: one that was made before there were any silently leaves them out."""
        try:
            searcher.fast_field_values("mark", [])
        except ValueError:
            return False
        return True

    def close(self) -> None:
        """Let the merges end and the file lock go. Idempotent."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        """Close the writer and lose what is not committed: after a failure (a full disk) it would refuse all that
        follows. Waiting for its merges is what lets its file lock go at once."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(ValueError, RuntimeError):
                writer.wait_merging_threads()


class Shelf:
    """The open indexes below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[Path, Opened] = {}
        self._lock = threading.Lock()

    def prepare(self, projection: str, generation: str) -> None:
        path = self._path(projection, generation)
        with self._lock:
            if path not in self._open:
                with told_apart():
                    path.mkdir(parents=True, exist_ok=True)
                self._open[path] = _opened(path, create=True)

    def index(self, projection: str, generation: str) -> Opened:
        """Raises :class:`~outbox.errors.StoreError` if the generation was not prepared."""
        path = self._path(projection, generation)
        with self._lock:
            if path not in self._open:
                self._open[path] = _opened(path, create=False)
            return self._open[path]

    def drop(self, projection: str, generation: str) -> None:
        path = self._path(projection, generation)
        with self._lock:
            if opened := self._open.pop(path, None):
                opened.close()
            if path.exists():
                with told_apart():
                    (path / META).unlink(missing_ok=True)  # first: what is cut off here must not be taken for an index
                    shutil.rmtree(path)

    def close(self) -> None:
        with self._lock:
            for opened in self._open.values():
                opened.close()
            self._open.clear()

    def _path(self, projection: str, generation: str) -> Path:
        if not _NAME.fullmatch(generation):
            raise SettingsError(f"tantivy: generation {generation!r} cannot name a folder")
        return self._root / projection / generation


_SHELVES: Final[Shared[Shelf]] = Shared(Shelf.close)


@contextmanager
def open_shelf(projection: str, settings: Mapping[str, Any]) -> Iterator[Shelf]:
    """The shelf at ``path``, a folder. Raises :class:`~outbox.errors.SettingsError`."""
    only("tantivy", settings, "path")
    if not settings.get("path"):
        raise SettingsError("tantivy: the setting path is missing")
    if not _NAME.fullmatch(projection):
        raise SettingsError(f"tantivy: projection {projection!r} may hold only letters, digits, '_' and '-'")
    with _SHELVES.hold(Path(settings["path"]), Shelf) as shelf:
        yield shelf


@contextmanager
def told_apart() -> Iterator[None]:
    """Raise Tantivy's errors as ours, by what their text says."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"tantivy: {error}") from error
    except ValueError as error:
        text = " ".join(str(error).split())
        if "LockBusy" in text:
            raise StoreUnavailable("tantivy: another process writes this index") from error
        if "DoesNotExist" in text or "FileDoesNotExist" in text:
            raise StoreError(f"tantivy: {text}: prepare the generation first") from error
        raise StoreUnavailable(f"tantivy: {text}") from error


def _opened(path: Path, *, create: bool) -> Opened:
    with told_apart():
        # One that is there is opened as it is: its schema may be an older one.
        fresh = create and not tantivy.Index.exists(str(path))
        index = tantivy.Index(schema(), path=str(path)) if fresh else tantivy.Index.open(str(path))
        # Readers load the newest commit when asked; the other policy watches the folder from a thread per index.
        index.config_reader(reload_policy="manual")
    return Opened(index)
