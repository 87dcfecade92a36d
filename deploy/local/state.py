"""The record of a home's services, so that a later process can find and end what an earlier one started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from deploy.local.errors import LocalError
from deploy.local.service import Owner, Service

FILE: Final = "state.json"
FORMAT: Final = 1


def write(home: Path, services: Iterable[Service]) -> None:
    """Replace the record in one step: a reader sees the old or the new one, never a part."""
    record = {"format": FORMAT, "services": [_row(service) for service in services]}
    staging = home / f"{FILE}.{os.getpid()}"
    staging.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    staging.replace(home / FILE)


def read(home: Path, owner: Owner) -> list[Service]:
    """Return the recorded services, running or not. Raises LocalError if the record is not ours to read."""
    try:
        record = json.loads((home / FILE).read_text(encoding="utf-8"))
        rows = {FORMAT: record["services"]}[record["format"]]
        return [_service(home, row, owner) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise LocalError(f"{home / FILE} is not a record of local servers ({error}): choose another home") from error


def _row(service: Service) -> dict[str, object]:
    return {
        "name": service.name,
        "address": service.address,
        "pid": service.pid,
        "born_s": service.born_s,
        "ports": list(service.ports),
        "started_s": round(service.started_s, 3),
    }


def _service(home: Path, row: dict[str, Any], owner: Owner) -> Service:
    name = str(row["name"])
    return Service(
        name=name,
        address=str(row["address"]),
        pid=int(row["pid"]),
        born_s=float(row["born_s"]),
        ports=tuple(int(port) for port in row["ports"]),
        home=home / name,
        log=log_of(home, name),
        started_s=float(row["started_s"]),
        owner=owner,
    )


def log_of(home: Path, name: str) -> Path:
    """Return the log of a service: beside its folder, so that no server mistakes it for its own."""
    return home / f"{name}.log"
