"""What a command imports before it does its work: most of the time it takes. No time is asserted: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from projectors.serving import serving
from tests.e2e.outbox_command import environment
from tests.integration.asking import MEMORY, settings_of, world

COMMAND = """
import json, sys
sys.argv[0] = "outbox"
from outbox.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(json.dumps(sorted(sys.modules)))
"""
HEAVY = {"chromadb", "confluent_kafka", "elasticsearch", "fastavro", "kafka", "ladybug", "neo4j", "numpy"} | {
    "prometheus_client",
    "psutil",
    "structlog",
    "tantivy",
    "tenacity",
}
"""What a question needs of none of them: clients of brokers and stores, and what runs projectors."""
WORK = {"outbox.codec", "outbox.relay.relay", "projectors.operations", "projectors.rebuild", "projectors.wiring"}
"""Modules that import all the others of their side."""


def loaded(code: str, *arguments: str, settings: Mapping[str, str], cwd: Path) -> set[str]:
    """The modules and the packages that are there in the end."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=environment(settings), cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    modules = json.loads(done.stdout.splitlines()[-1])
    return {*modules, *(name.partition(".")[0] for name in modules)}


@pytest.mark.parametrize("package", ["outbox", "projectors"])
def test_a_package_imports_nothing_but_pythons_own(package: str, tmp_path: Path) -> None:
    shown = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    before = loaded(shown, settings={}, cwd=tmp_path)
    after = loaded(f"import {package}; {shown}", settings={}, cwd=tmp_path)
    assert {name.partition(".")[0] for name in after - before} - set(sys.stdlib_module_names) == {package}


def test_help_waits_for_no_settings_no_driver_and_no_log(tmp_path: Path) -> None:
    modules = loaded(COMMAND, "--help", settings={}, cwd=tmp_path)
    assert "typer" in modules
    assert modules.isdisjoint(HEAVY | WORK | {"asyncio", "psycopg", "pydantic", "rich"})


def test_the_status_of_servers_imports_the_driver_and_none_of_what_runs_projectors(
    database: str, tmp_path: Path
) -> None:
    settings = {"OUTBOX_MODE": "servers", "OUTBOX_DATABASE__DSN": database}
    modules = loaded(COMMAND, "status", settings=settings, cwd=tmp_path)
    assert {"psycopg", "projectors.status"} <= modules
    assert modules.isdisjoint(HEAVY | WORK)


def test_a_status_that_outbox_up_answers_imports_no_driver(database: str, tmp_path: Path) -> None:
    with world(settings_of(database, tmp_path, MEMORY)) as built, serving(built.side):
        modules = loaded(COMMAND, "status", settings={"OUTBOX_DATA_DIR": str(tmp_path)}, cwd=tmp_path)
    assert "projectors.control" in modules
    assert modules.isdisjoint(HEAVY | WORK | {"psycopg", "projectors.status"})
