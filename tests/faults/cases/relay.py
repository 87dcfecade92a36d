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
    run.command("relay2", "relay")
    run.appended(40)
    run.caught_up()
    run.children["relay"].resume()
    run.passed("relay")
    run.over()
    run.appended(20)
