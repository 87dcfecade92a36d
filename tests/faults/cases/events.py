"""Events that a projector cannot take, deliveries that come again, clocks that jump."""

from __future__ import annotations

import json
import shutil

from tests.faults import broker
from tests.faults.clock import AFTER_S, JUMP_S
from tests.faults.faults import fault
from tests.faults.judging import require
from tests.faults.projection import MENDED
from tests.faults.run import Run

HOUR_S = 3_600
NOTED = {
    "type": "record",
    "name": "ThingNoted",
    "namespace": "outbox.faults",
    "doc": "Something a projector of today does not know of yet.",
    "fields": [{"name": "what", "type": "string"}],
}


@fault("event: poison", poison=True)
def _poison(run: Run) -> None:
    """Its stream stands still, the others go on; once the projection is mended it goes on in order."""
    run.begin()
    run.appended(20)
    for _ in range(run.source.randrange(1, 4)):
        run.append(f"thing-{run.source.randrange(12)}", "entity.patched", {"properties": {"!": 1, "p1": 7}})
    run.appended(40)
    run.stop_writers()
    require(run)
    run.children["project"].stop()
    run.again("project", **{MENDED: "1"})
    run.poisoned = False
    run.must("dead-letters", "retry", run.projector("rows"))
    run.over()


@fault("event: unknown schema", poison=True)
def _unknown(run: Run) -> None:
    """A type that is newer than the projector; it knows it after its update."""
    folder = run.folder / "schemas"
    folder.mkdir()
    (folder / "thing.noted.v1.avsc").write_text(json.dumps(NOTED), "utf-8")
    run.begin()
    run.appended(20)
    for _ in range(run.source.randrange(1, 4)):
        run.append(f"thing-{run.source.randrange(12)}", "thing.noted", {"what": "news"}, schemas=folder)
    run.appended(40)
    run.stop_writers()
    require(run)
    run.children["project"].stop()
    run.again("project", OUTBOX_SCHEMAS=json.dumps([str(folder)]))
    run.poisoned = False
    run.must("dead-letters", "retry", run.projector("rows"))
    run.over()
    shutil.copytree(folder, run.folder / "kept")


def _again(run: Run) -> None:
    """Copies of what was published, shuffled, come onto the topic a second time."""
    run.begin()
    run.appended(run.source.randrange(40, 120))
    for _ in range(run.source.randrange(1, 4)):
        broker.publish_again(run.place_of_broker(), run.source)
    run.over()
    run.appended(20)


fault("delivery: again and shuffled, local broker")(_again)
fault("delivery: again and shuffled, Kafka", broker="kafka", cheap=False, bound_s=60)(_again)


def _jump(run: Run, jump_s: int) -> None:
    jump = {JUMP_S: str(jump_s), AFTER_S: str(run.source.uniform(0.5, 1.5))}
    run.command("relay", "relay", **jump)
    run.command("project", "project", **jump)
    run.write(2, jump=jump)
    run.appended(run.source.randrange(200, 400), 60)
    run.over()


for _name, _jump_s in (("an hour on", HOUR_S), ("an hour back", -HOUR_S)):
    fault(f"clock: jumps {_name}")(lambda run, jump_s=_jump_s: _jump(run, jump_s))
