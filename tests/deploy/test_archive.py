"""A server's second start maps the classes that its first one archived, and a bad archive stops nothing."""

from pathlib import Path

import psutil
import pytest

from deploy.local import Local, archive
from deploy.local.java import find_java


@pytest.fixture
def shared(monkeypatch, tmp_path):
    """The real Kafka jars, with the archive in a folder of the test's own."""
    monkeypatch.setattr(
        "deploy.local.kafka.archive.flags",
        lambda java, _shared, folder, real=archive.flags: real(java, tmp_path, folder),
    )
    return tmp_path


def start_and_stop():
    with Local() as local:
        (service,) = local.start("kafka")
        return psutil.Process(service.pid).cmdline()


def test_the_first_start_writes_an_archive_and_the_next_uses_it(shared):
    if not (find_java().home / "lib" / "server" / "classes.jsa").exists():
        assert not any("Archive" in word for word in start_and_stop()), "this Java has nothing to build upon"
        return
    assert any(word.startswith("-XX:ArchiveClassesAtExit=") for word in start_and_stop())
    (written,) = shared.glob("*.jsa")
    assert written.stat().st_size > 1_000_000
    assert f"-XX:SharedArchiveFile={written}" in start_and_stop()

    written.write_bytes(written.read_bytes()[:5_000])
    assert f"-XX:SharedArchiveFile={written}" in start_and_stop(), "a torn archive is passed over by Java itself"


def test_a_crashed_server_leaves_no_archive(shared):
    with Local() as local:
        local.start("kafka")
        local["kafka"].kill()
    assert not list(Path(shared).glob("*.jsa"))
