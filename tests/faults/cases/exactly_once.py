"""Exactly once: the relay killed, stopped and replaced round the broker's commit; a reader of committed messages sees
each event once all the same."""

from __future__ import annotations

from tests.faults.faults import fault
from tests.faults.run import Run
from tests.faults.until import until

KILLED = {
    "before it sends": "relay.publish:before",
    "while it sends": "relay.flush:before",
    "before the commit": "relay.commit:before",
    "after the commit": "relay.commit:after",
    "at mark": "relay.mark:after",
}


def _killed(run: Run, point: str) -> None:
    run.begin(relay=f"{point}:{run.source.randrange(2, 12)}:kill")
    run.died("relay")
    if run.quietly:
        run.stop_writers()
    run.again("relay")
    run.over()
    if not run.quietly:
        run.appended(40)


for _name, _point in KILLED.items():
    fault(f"relay: killed {_name}, exactly once", broker="kafka", delivery="exactly_once", bound_s=45, cheap=False)(
        lambda run, point=_point: _killed(run, point)
    )


@fault("relay: killed at any moment, exactly once", broker="kafka", delivery="exactly_once", bound_s=60, cheap=False)
def _killed_again_and_again(run: Run) -> None:
    """Five times, at any point of the commit's path; also of the recovery from the kill before."""
    run.begin(relay=_anywhere(run))
    for _ in range(5):
        run.died("relay")
        run.again("relay", _anywhere(run))
    run.died("relay")
    run.again("relay")
    run.over()
    run.appended(40)


def _anywhere(run: Run) -> str:
    return f"{run.source.choice(sorted(KILLED.values()))}:{run.source.randrange(1, 8)}:kill"


def _replaced(run: Run, point: str) -> None:
    """When it goes on, another has taken its transactions over."""
    run.begin(relay=f"{point}:{run.source.randrange(2, 12)}:pause")
    run.paused("relay")
    run.succeeded_by("relay2")
    run.appended(40)
    step = "SELECT max(step) FROM outbox.relay_cursor"
    before = run.value(step)
    until(lambda: run.value(step) > before, "the second relay publishes")
    run.children["relay"].resume()
    run.passed("relay")
    run.over()
    run.appended(20)


for _name, _point in {"before": "relay.commit:before", "after": "relay.commit:after"}.items():
    fault(
        f"relay: stopped {_name} the commit, replaced, continued, exactly once",
        broker="kafka",
        delivery="exactly_once",
        bound_s=45,
        cheap=False,
    )(lambda run, point=_point: _replaced(run, point))
