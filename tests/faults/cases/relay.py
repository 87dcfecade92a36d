"""The relay killed, stopped and replaced."""

from __future__ import annotations

from tests.faults.faults import fault
from tests.faults.run import Run

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
