"""The relay killed, stopped and replaced."""

from __future__ import annotations

import psycopg

from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.until import until

KILLED = {
    "killed at read": "relay.read:after",
    "killed at send": "relay.send:before",
    "killed at ack": "relay.send:after",
    "killed at mark": "relay.mark:after",
}


def _killed(run: Run, point: str) -> None:
    run.begin(relay=f"{point}:{run.source.randrange(2, 12)}:kill")
    run.died("relay")
    run.again("relay")
    run.over()
    run.appended(40)


for _name, _point in KILLED.items():
    fault(f"relay: {_name}")(lambda run, point=_point: _killed(run, point))


@fault("relay: stopped, replaced, continued")
def _replaced(run: Run) -> None:
    """It stands still between publishing and marking; when it goes on, another leads."""
    run.begin(relay=f"relay.mark:before:{run.source.randrange(2, 12)}:pause")
    run.paused("relay")
    run.succeeded_by("relay2")
    run.appended(40)
    run.caught_up()
    run.children["relay"].resume()
    run.passed("relay")
    run.over()
    run.appended(20)


@fault("relay: its lease's connection half open", bound_s=45)
def _half_open(run: Run) -> None:
    """Nothing of what the leader says reaches PostgreSQL; another leads; then the cable is back."""
    proxy = run.through("relay>postgres")
    run.begin()
    run.appended(run.source.randrange(10, 80))
    proxy.set("freeze")
    run.unproxied("relay>postgres")
    run.succeeded_by("relay2")
    run.appended(40)
    proxy.set("pass")
    run.over()
    run.appended(20)


@fault("relay: killed at ack, Kafka", broker="kafka", cheap=False, bound_s=45)
def _killed_kafka(run: Run) -> None:
    _killed(run, "relay.send:after")


@fault("relay: killed while it sends, Kafka", broker="kafka", cheap=False, bound_s=45)
def _killed_sending(run: Run) -> None:
    """Handed over to the client, and perhaps on its way."""
    _killed(run, "relay.flush:before")


@fault("relay: stopped, replaced, continued, Kafka", broker="kafka", cheap=False, bound_s=45)
def _replaced_kafka(run: Run) -> None:
    _replaced(run)


for _name in ("killed at send", "killed at ack", "killed at mark"):
    fault(f"relay: {_name}, cdc", engine="cdc", cheap=_name == "killed at ack")(
        lambda run, point=KILLED[_name]: _killed(run, point)
    )


@fault("relay: stopped, replaced, continued, cdc", engine="cdc", bound_s=45)
def _replaced_cdc(run: Run) -> None:
    _replaced(run)


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
    slot = run.value("SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND active")
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
