"""How much memory a process has had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import psutil

MIB: Final = 1 << 20
HIGH_WATER: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)


def peak_mib(pid: int) -> float:
    """The most that was resident at once since the process began; where the system does not say, what is now."""
    status = Path(f"/proc/{pid}/status")
    found = HIGH_WATER.search(status.read_text("ascii")) if status.exists() else None
    if found:
        return int(found[1]) * 1024 / MIB
    return float(psutil.Process(pid).memory_info().rss / MIB)
