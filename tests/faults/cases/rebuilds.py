"""A rebuild killed at each of its steps, and everything asked to end at any moment."""

from __future__ import annotations

import threading

import psycopg

from tests.faults.checks import Violation
from tests.faults.faults import fault
from tests.faults.run import Run

STEPS = {
    "after it began": "rebuild.begin:after:1",
    "before it loaded": "rebuild.load:before:1",
    "after it loaded": "rebuild.load:after:1",
    "before it caught up": "rebuild.catch_up:before:1",
    "before it verified": "rebuild.verify:before:1",
    "after it verified": "rebuild.verify:after:1",
    "before the alias moved": "rebuild.alias:before:1",
    "between alias and row": "rebuild.alias:after:1",
    "after the row": "rebuild.switch:after:1",
    "before the old went": "rebuild.drop:before:1",
}


class Watching:
    """Reads the view as a user does, all the while; what it never may see is nothing."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: list[Violation] = []
        self.looked = 0

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._run.found += self.seen[:1]

    def _look(self) -> None:
        query = f'SELECT count(*) FROM outbox_rows."{self._run.projector("rows")}"'
        with psycopg.connect(self._run.dsn, autocommit=True) as connection:
            while not self._ended.wait(0.01):
                self.looked += 1
                try:
                    row = connection.execute(query).fetchone()
                except psycopg.Error as error:
                    self.seen.append(Violation("I3", f"a reader was refused during a rebuild: {error}"))
                else:
                    if row is None or row[0] == 0:
                        self.seen.append(Violation("I3", "a reader saw an empty store during a rebuild"))


def _rebuilt(run: Run, point: str) -> None:
    run.begin()
    run.appended(60)
    run.caught_up()
    before = run.place("rows").serving
    with Watching(run):
        run.command("rebuild", "rebuild", run.projector("rows"), point=f"{point}:kill")
        run.died("rebuild")
        run.quiet.add("rebuild")
        run.must("rebuild", run.projector("rows"))
    if run.place("rows").serving == before:
        run.found.append(Violation("I6", f"after the rebuild {before} serves still"))
    run.over()
    if not run.quietly:
        run.appended(20)


IN_SHORT = ("after it began", "after it loaded", "between alias and row")

for _name, _point in STEPS.items():
    fault(f"rebuild: killed {_name}", cheap=_name in IN_SHORT)(lambda run, point=_point: _rebuilt(run, point))


@fault("everything: SIGTERM at any moment")
def _asked_to_end(run: Run) -> None:
    """Each ends by itself, with 0, and leaves nothing that its successor cannot go on from."""
    run.begin()
    for _ in range(run.source.randrange(3, 6)):
        run.appended(run.source.randrange(5, 60))
        name = run.source.choice(["relay", "project", "rebuild"])
        if name == "rebuild":
            child = run.command("rebuild", "rebuild", run.projector("rows"))
            threading.Event().wait(run.source.uniform(0.0, 0.6))
            child.stop()
            run.quiet.add("rebuild")
        else:
            _ended_well(run, name)
            run.again(name)
    run.over()


def _ended_well(run: Run, name: str) -> None:
    run.children[name].await_heed()
    if (code := run.children[name].stop()) != 0:
        run.found.append(Violation("I6", f"{name} ended with {code} on SIGTERM: {run.log(name)[-300:]}"))


@fault("everything: killed at any moment", bound_s=60, cheap=False)
def _killed(run: Run) -> None:
    """Relay and projector, again and again."""
    run.begin()
    for _ in range(run.source.randrange(2, 5)):
        threading.Event().wait(run.source.uniform(0.1, 0.8))
        name = run.source.choice(["relay", "project"])
        run.children[name].kill()
        run.again(name)
    run.over()
    run.appended(20)
