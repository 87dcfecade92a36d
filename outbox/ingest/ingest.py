"""Reads files into the log: one stream a file, one event for each change and none for what stays."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outbox.errors import InvalidEvent
from outbox.event import check_stream
from outbox.ingest.batch import Batch, Pending
from outbox.ingest.errors import UnreadableFile
from outbox.ingest.log import Known, Log
from outbox.ingest.naming import Name, Namer
from outbox.ingest.options import Options
from outbox.ingest.plan import conflict, digest_of, is_unchanged
from outbox.ingest.reader import read, version_of
from outbox.ingest.report import Progress, Report
from outbox.ingest.scan import Failure, Scan, scan, shown, sources


def ingest(
    paths: Sequence[str | Path], log: Log, *, options: Options | None = None, progress: Progress | None = None
) -> Report:
    """Bring the log up to date with the files under ``paths`` (folders, files, or ``NAME=PATH``).

    1. Every PATH is walked. Nothing has been written if one is missing or unreadable.
    2. Streams of these sources whose file has gone end with ``entity.deleted``: before anything else, so
       that a file moved from one source to another finds its stream free.
    3. Each file whose digest differs from its stream's last one is read and appended, in batches. A file
       that cannot be read keeps its last good state.

    Stopped anywhere (Ctrl-C, a crash), the same call again does what is left. Two at once are safe: exact
    expected versions guard every append. Raises :class:`~outbox.ingest.errors.SourceError` before the
    first write and what ``log`` raises; anything about a single file is in the report instead.
    """
    started = time.monotonic()
    run = _Run(log, options or Options(), progress)
    walked = [run.walk(found) for found in [scan(source, run.options) for source in sources(paths)]]
    for root in walked:
        run.end_gone(root)
    run.batch.flush()
    for root in walked:
        run.read_changed(root)
        run.batch.flush()
    return run.report(time.monotonic() - started)


@dataclass(slots=True)
class _Root:
    """One source, its files with their names, and what the log knows of it."""

    scan: Scan
    files: dict[str, Name]
    known: dict[str, Known]
    seen: frozenset[str]
    """Streams of every file that is there, read or not: these have not gone."""


@dataclass(slots=True)
class _Run:
    log: Log
    options: Options
    progress: Progress | None
    batch: Batch = field(init=False)
    failed: list[Failure] = field(default_factory=list)
    notes: list[Failure] = field(default_factory=list)
    files: int = 0
    unchanged: int = 0
    done: int = 0
    bytes_read: int = 0

    def __post_init__(self) -> None:
        self.batch = Batch(self.log, self.options)

    def walk(self, found: Scan) -> _Root:
        """Name the files of a source and ask the log about it."""
        namer = Namer(found.source.name, found.present, self.options.prefix)
        names = {path: namer.name(path) for path in [*found.files, *found.refused]}
        folder = found.source.folder
        self.failed.extend(found.unlisted)
        self.failed.extend(Failure(shown(folder / path), reason) for path, reason in found.refused.items())
        self.files += len(names)
        known = {state.stream: state for state in self.log.known(found.source.name)}
        files = {path: names[path] for path in found.files if self._can_be_named(folder / path, names[path])}
        return _Root(found, files, known, frozenset(name.stream for name in names.values()))

    def end_gone(self, root: _Root) -> None:
        """End the streams of files that are no longer there, unless some folder could not be looked into."""
        source = root.scan.source
        if source.only or root.scan.unlisted:
            return
        for stream in sorted(root.known.keys() - root.seen):
            known = root.known[stream]
            if not known.deleted:
                self.batch.add(Pending(shown(stream), stream, source.name, known))

    def read_changed(self, root: _Root) -> None:
        """Append every file that is new or has changed."""
        pending = list(root.files.items())
        size = self.options.batch_streams
        for start in range(0, len(pending), size):
            chunk = dict(pending[start : start + size])
            known = self._look(root, chunk)
            for path, name in chunk.items():
                self._take(root, path, name, known.get(name.stream))

    def report(self, seconds: float) -> Report:
        batch = self.batch
        return Report(
            files=self.files,
            new=batch.new,
            changed=batch.changed,
            unchanged=self.unchanged + batch.unchanged,
            deleted=batch.deleted,
            failed=(*self.failed, *batch.failed),
            notes=tuple(self.notes),
            events=batch.new + batch.changed + batch.deleted,
            bytes=self.bytes_read,
            seconds=seconds,
        )

    def _look(self, root: _Root, chunk: Mapping[str, Name]) -> dict[str, Known]:
        """What is known of these files' streams; the log is asked about those new to the source."""
        streams = [name.stream for name in chunk.values()]
        strangers = [stream for stream in streams if stream not in root.known]
        found = dict(self.log.look(strangers)) if strangers else {}
        return found | {stream: root.known[stream] for stream in streams if stream in root.known}

    def _take(self, root: _Root, path: str, name: Name, known: Known | None) -> None:
        place = root.scan.source.folder / path
        try:
            change = self._change(root, path, name, known)
            if change is None:
                self.unchanged += 1
            else:
                self.batch.add(change)
        except UnreadableFile as error:
            where = f"{shown(place)}:{error.line}" if error.line else shown(place)
            self.failed.append(Failure(where, error.why))
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.files, shown(place))

    def _change(self, root: _Root, path: str, name: Name, known: Known | None) -> Pending | None:
        source = root.scan.source
        if reason := conflict(known, source.name):
            raise UnreadableFile(reason)
        content = self._content(source.folder / path)
        digest = digest_of(content, path, self.options.prefix, version_of(path))
        if is_unchanged(known, digest):
            return None
        data = read(content, name, path, self.options.prefix)
        self._note(source.folder / path, data["properties"])
        meta = {"source": source.name, "path": path, "digest": digest}
        place = shown(source.folder / path)
        return Pending(place, name.stream, source.name, known, digest, data, meta, len(content))

    def _content(self, place: Path) -> bytes:
        """The file's content. It may have gone, or grown, since it was seen."""
        limit = self.options.file_bytes_max
        try:
            with place.open("rb") as file:
                content = file.read(limit + 1)
        except OSError as error:
            raise UnreadableFile(error.strerror or str(error)) from error
        if len(content) > limit:
            raise UnreadableFile(f"more than {limit} bytes")
        self.bytes_read += len(content)
        return content

    def _note(self, place: Path, properties: Mapping[str, object]) -> None:
        if replaced := properties.get("replaced"):
            self.notes.append(Failure(shown(place), f"{replaced} place(s) that are not UTF-8 were replaced"))

    def _can_be_named(self, place: Path, name: Name) -> bool:
        try:
            check_stream(name.stream)
        except InvalidEvent as error:
            self.failed.append(Failure(shown(place), shown(str(error))))
            return False
        return True
