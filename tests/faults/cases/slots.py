"""The cdc engine's replication slot dropped, and lost to PostgreSQL's own bound on what slots may keep."""

from __future__ import annotations

import psycopg

from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.until import until


@fault("replication slot: dropped under way", engine="cdc", bound_s=45)
def _slot_dropped(run: Run) -> None:
    """Whoever administers the database drops it; what it held back is lost with it."""
    run.begin()
    for _ in range(run.source.randrange(1, 4)):
        until(lambda: _dropped(run), "there is a slot to drop")
        run.appended(run.source.randrange(10, 80))
    run.over()
    run.appended(20)


def _dropped(run: Run) -> bool:
    """Drop the slot that is streamed from; whether there was one."""
    slot = _streaming(run)
    if slot is None:
        return False
    with run.connection() as connection:
        try:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE slot_name = %s", [slot]
            )
            connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
            return False  # its relay was quicker
    return True


@fault("replication slot: lost to max_slot_wal_keep_size", engine="cdc", alone=True, bound_s=60, cheap=False)
def _slot_lost(run: Run) -> None:
    """While its relay is away or stands still, PostgreSQL writes more than slots may keep, and removes it."""
    run.begin()
    run.appended(run.source.randrange(10, 80))
    slot = until(lambda: _streaming(run), "a slot is streamed from")
    away = run.source.random() < 0.5
    run.kill("relay") if away else run.children["relay"].pause()
    run.appended(run.source.randrange(10, 80))
    _keep_little(run, slot)
    if run.quietly:
        run.stop_writers()
    run.again("relay") if away else run.children["relay"].resume()
    run.over()
    if not run.quietly:
        run.appended(40)


def _streaming(run: Run) -> str | None:
    """The slot that is streamed from now; not one that is only being made, which could be ended again and again."""
    query = (
        "SELECT slot_name FROM pg_replication_slots"
        " WHERE database = current_database() AND active AND confirmed_flush_lsn > '0/0'"
    )
    slot: str | None = run.value(query)
    return slot


def _keep_little(run: Run, slot: str) -> None:
    """Until the slot has lost what it stands at."""
    status = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s"

    def lost() -> bool:
        with run.connection() as connection:
            connection.execute("SELECT pg_switch_wal() FROM (SELECT pg_logical_emit_message(true, '', 'x')) m")
            connection.execute("CHECKPOINT")
        return bool(run.value(status, slot) == "lost")

    with run.connection() as connection:
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            until(lost, "the slot is lost", 60)
        finally:
            connection.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            connection.execute("SELECT pg_reload_conf()")
