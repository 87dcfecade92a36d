"""From a backup back to stores that serve: the log is restored, and a reconcile builds what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from outbox.backup import backup, restore
from outbox.database import connected
from outbox.event import NewEvent
from outbox.log.append import append
from outbox.settings import Projecting
from projectors import ledger
from projectors.reconcile import reconcile
from tests.e2e.outbox_command import answer, outbox
from tests.integration.going_back import Databases, assert_nothing_runs
from tests.integration.reading import assert_equal_to_model, deleted, settings_of, staged


def test_every_store_rebuilt_from_a_restored_backup_equals_the_one_before(
    database: str, empty_database: str, new_database: Databases, address: Callable[[str], str], tmp_path: Path
) -> None:
    both = {
        "rows": Projecting(projection="parts", store="postgres"),
        "documents": Projecting(projection="documents", store="tantivy", categories=("thing",)),
    }
    stores = {"postgres": {"dsn": new_database()}}
    more: dict[str, Any] = {"projectors": both, "stores": stores, "data_dir": tmp_path / "data"}
    (tmp_path / "data").mkdir()
    settings = settings_of("local", database, address, **more)
    with staged(settings) as stage:
        with stage.running():
            for n in range(60):
                stage.append(f"thing-{n}", upserted(n, a=n), upserted(n, b=n))
            stage.append("thing-7", deleted())
            stage.wait_all()
        before = {name: stage.held(name) for name in both}
        backup(stage.connection, tmp_path / "b", stage.registry)
        with stage.running():  # and what happened later is lost
            stage.append("thing-1", upserted(1, a="lost"), upserted(1, d="lost"))
            stage.append("thing-2", deleted())
            stage.append("thing-98", upserted(98, a="lost"))
            stage.wait_all()
        assert {name: stage.held(name) for name in both} != before
    with connected(empty_database) as connection:
        restore(connection, tmp_path / "b")
    again = settings.model_copy(update={"database": settings.database.model_copy(update={"dsn": empty_database})})
    assert_nothing_runs(again)
    with staged(again) as stage:
        assert ledger.generations(stage.connection, "rows") == [], "nothing was loaded over what the store holds"
        assert {b.projector for b in reconcile(stage.side).built} == set(both)
        assert {name: stage.held(name) for name in both} == before
        assert len(before["documents"]) == 59
        with stage.running():
            stage.append("thing-1", upserted(1, c="new"))
            stage.append("thing-98", upserted(98, c="new"))
            stage.wait_all()
        assert_equal_to_model(stage)
        assert all(stage.verify(name).clean for name in both)


def test_the_commands_lead_from_a_backup_to_stores_that_serve(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    with connected(database) as connection:
        for n in range(20):
            append(connection, f"entity-{n}", upserted(n, a=n))
    before = {"OUTBOX_DATABASE__DSN": database, "OUTBOX_DATA_DIR": str(tmp_path / "before")}
    after = {"OUTBOX_DATABASE__DSN": empty_database, "OUTBOX_DATA_DIR": str(tmp_path / "after")}
    assert answer("backup", str(tmp_path / "b"), settings=before, cwd=tmp_path)["events"] == 20
    assert answer("restore", str(tmp_path / "b"), settings=after, cwd=tmp_path)["events"] == 20
    halted = outbox("relay", "--drain", settings=after, cwd=tmp_path)
    assert (halted.returncode, len(halted.stderr.splitlines())) == (1, 1)
    assert "run `outbox reconcile`" in halted.stderr
    done = answer("reconcile", settings=after, cwd=tmp_path)
    assert {b["projector"]: b["records"] for b in done["built"]} == {"vectors": 20, "graph": 20, "documents": 20}
    assert outbox("relay", "--drain", settings=after, cwd=tmp_path).returncode == 0
    assert "nothing says" in outbox("reconcile", settings=after, cwd=tmp_path).stdout


def upserted(n: int, **parts: Any) -> NewEvent:
    return NewEvent("entity.upserted", {"kind": "k", "name": f"n{n}", "text": f"text {n}", "properties": parts})
