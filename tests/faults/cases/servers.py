"""PostgreSQL and Kafka killed, frozen and short of space."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import psycopg

from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.until import until

DISK_MIB = 64
CAP_SYS_ADMIN = 21


def _rest(run: Run, least_s: float, most_s: float) -> None:
    """Let things be as they are for a while: how long is the fault's own choice, by its seed."""
    threading.Event().wait(run.source.uniform(least_s, most_s))


def _frozen(run: Run, name: str, most_s: float) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 120))
    server = run.servers.service(name)
    server.pause()
    _rest(run, 1, most_s)
    server.resume()
    run.over()


@fault("PostgreSQL: postmaster killed", alone=True, bound_s=60)
def _postmaster(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 120))
    server = run.servers.service("postgres")
    server.kill()
    server.restart()
    run.over()
    run.appended(40, 60)


@fault("PostgreSQL: postmaster killed, cdc", engine="cdc", alone=True, bound_s=60, cheap=False)
def _postmaster_cdc(run: Run) -> None:
    _postmaster(run)


@fault("PostgreSQL: frozen", alone=True, bound_s=60)
def _frozen_postgres(run: Run) -> None:
    _frozen(run, "postgres", 5)
    run.appended(40, 60)


def _may_mount() -> bool:
    """Whether we may mount a file system: Linux, with CAP_SYS_ADMIN."""
    status = Path("/proc/self/status")
    if not status.exists():
        return False
    (mask,) = [line.split()[1] for line in status.read_text("utf-8").splitlines() if line.startswith("CapEff:")]
    return bool(int(mask, 16) >> CAP_SYS_ADMIN & 1)


def _disk_full(run: Run) -> None:
    """The database stands in a tablespace on a small tmpfs, which a ballast file fills to the last byte; PostgreSQL's
    WAL stands elsewhere, as where it does not the server stops and ``postmaster killed`` is what happens."""
    disk = run.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,mode=0777", "tmpfs", disk], check=True)
    run.stack.callback(subprocess.run, ["umount", "-l", disk], check=True)
    space = f"small{run.mark}"
    owned = disk / "pg"
    owned.mkdir()
    shutil.copystat(run.servers.service("postgres").home / "data", owned)
    _own_alike(run.servers.service("postgres").home / "data", owned)
    run.folder.chmod(0o755)
    run.move_to_tablespace(space, owned)
    run.begin()
    run.appended(30)
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    until(lambda: _is_full(run), "PostgreSQL says that its disk is full")
    _rest(run, 0.5, 2)
    ballast.unlink()
    run.over()
    run.appended(40, 60)


def _own_alike(model: Path, folder: Path) -> None:
    found = model.stat()
    shutil.chown(folder, found.st_uid, found.st_gid)


def _is_full(run: Run) -> bool:
    try:
        with run.connection() as connection:
            connection.execute("CREATE TABLE ballast AS SELECT repeat('x', 2000) FROM generate_series(1, 2000)")
            connection.execute("DROP TABLE ballast")
    except psycopg.errors.DiskFull:
        return True
    return False


if _may_mount():
    fault("PostgreSQL: disk full", bound_s=60)(_disk_full)


@fault("Kafka: killed", broker="kafka", alone=True, bound_s=90, cheap=False)
def _kafka_killed(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 120))
    server = run.servers.service("kafka")
    server.kill()
    run.appended(20)
    server.restart()
    run.over()


@fault("Kafka: restarted", broker="kafka", alone=True, bound_s=90, cheap=False)
def _kafka_restarted(run: Run) -> None:
    run.begin()
    run.appended(run.source.randrange(20, 120))
    run.servers.service("kafka").restart()
    run.over()


@fault("Kafka: frozen", broker="kafka", alone=True, bound_s=90, cheap=False)
def _kafka_frozen(run: Run) -> None:
    _frozen(run, "kafka", 8)
