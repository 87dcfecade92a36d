"""What the figures were measured on, without the names of hosts or folders."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psycopg

GIB: Final = 1 << 30


def describe(postgres: str | None) -> dict[str, Any]:
    """The machine now; ``postgres`` is the DSN of the server that was measured."""
    return {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": _model(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
            "kernel": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
            "psycopg": version("psycopg"),
            "postgresql": _server_version(postgres) if postgres else None,
            "load_1m": round(os.getloadavg()[0], 1),
        },
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def spoken(about: dict[str, Any]) -> str:
    """One line of what :func:`describe` gives."""
    machine = about["machine"]
    parts = [
        f"{machine['cpus']} x {machine['cpu']}",
        f"{machine['memory_gib']:g} GiB",
        machine["kernel"],
        f"Python {machine['python']}",
        *([f"PostgreSQL {machine['postgresql']}"] if machine["postgresql"] else []),
        f"load {machine['load_1m']:g} before",
        about["at"],
    ]
    return " · ".join(parts)


def _model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _server_version(dsn: str) -> str:
    with psycopg.connect(dsn) as connection:
        return connection.info.parameter_status("server_version") or "?"
