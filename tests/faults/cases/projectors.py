"""Projectors killed, stopped and replaced; deliveries that come again and out of turn."""

from __future__ import annotations

from tests.faults.faults import fault
from tests.faults.run import Run

KILLED = {
    "killed before the store write": "project.apply.rows:before",
    "killed after the store write": "project.apply.rows:after",
    "killed after the checkpoint": "project.checkpoint:after",
}


def _killed(run: Run, point: str, **more: str) -> None:
    """``more``: settings that its supervisor gives it."""
    run.begin()
    run.children["project"].stop()
    run.again("project", point=f"{point}:{run.source.randrange(1, 8)}:kill", **more)
    run.died("project")
    if run.quietly:
        run.stop_writers()
    run.again("project")
    run.over()
    if not run.quietly:
        run.appended(20)


for _name, _point in KILLED.items():
    fault(f"projector: {_name}")(lambda run, point=_point: _killed(run, point))


def _zombie(run: Run, kind: str, action: str = "pause", at: str = "apply") -> None:
    """It stands still with a batch in its hands; others take its partitions and go further; then it goes on.

    ``zombie``: and is killed once its late write is done, before it could notice that it came late.
    """
    run.begin()
    run.caught_up()
    run.children["project"].stop()
    run.appended(run.source.randrange(60, 120))  # its batch is to hold nearly every key
    run.again("project", point=f"project.{at}.{kind}:before:1:{action}")
    run.paused("project", 60)
    run.command("project2", "project")
    run.appended(150)
    if run.quietly:
        run.stop_writers()
    run.caught_up(60)
    run.children["project"].resume()
    if action == "zombie":
        run.died("project")
        run.quiet.add("project")
    else:
        run.passed("project")
    run.over()
    if not run.quietly:
        run.appended(20)


@fault("projector: late zombie", bound_s=45)
def _late_zombie(run: Run) -> None:
    _zombie(run, "rows")


@fault("projector: late zombie, killed after its write", bound_s=45)
def _late_zombie_killed(run: Run) -> None:
    _zombie(run, "rows", "zombie")


@fault("projector: late zombie, Kafka", broker="kafka", bound_s=60, cheap=False)
def _late_zombie_kafka(run: Run) -> None:
    _zombie(run, "rows")


@fault("projector: late zombie, Elasticsearch", kinds=("documents",), bound_s=60, cheap=False)
def _late_zombie_documents(run: Run) -> None:
    _zombie(run, "documents")


@fault("projector: late zombie, Chroma", kinds=("vectors",), bound_s=60, cheap=False)
def _late_zombie_vectors(run: Run) -> None:
    _zombie(run, "vectors")


@fault("projector: late zombie, Neo4j", kinds=("nodes",), bound_s=60, cheap=False)
def _late_zombie_nodes(run: Run) -> None:
    _zombie(run, "nodes")


@fault("projector: late zombie, killed after its write, Chroma", kinds=("vectors",), bound_s=60, cheap=False)
def _late_zombie_killed_vectors(run: Run) -> None:
    _zombie(run, "vectors", "zombie")


@fault("projector: zombie between Chroma's read and its write", kinds=("vectors",), bound_s=60, cheap=False)
def _zombie_in_the_window(run: Run) -> None:
    """Chroma has no compare-and-set: what it writes is decided by what it read before it stood still."""
    _zombie(run, "vectors", at="write")


@fault("projector: killed before the store write, Kafka", broker="kafka", bound_s=60, cheap=False)
def _killed_kafka(run: Run) -> None:
    """Its supervisor gives it one name for good, so that Kafka need not wait whether it comes back."""
    _killed(run, "project.apply.rows:before", OUTBOX_KAFKA__MEMBER="project-0")


@fault("projector: killed after the store write, Chroma", kinds=("vectors",), bound_s=60, cheap=False)
def _killed_chroma(run: Run) -> None:
    _killed(run, "project.apply.vectors:after")


@fault("projector: killed after the store write, Neo4j", kinds=("nodes",), bound_s=60, cheap=False)
def _killed_neo4j(run: Run) -> None:
    _killed(run, "project.apply.nodes:after")


@fault("projector: rebalance in mid-batch", bound_s=45)
def _rebalanced(run: Run) -> None:
    """Members come and go while batches are in work."""
    run.begin()
    for _ in range(run.source.randrange(1, 4)):
        run.command("project2", "project")
        run.appended(run.source.randrange(10, 80))
        if run.source.random() < 0.5:
            run.children["project2"].stop()
        else:
            run.children["project2"].kill()
    run.quiet.add("project2")
    run.over()
    run.appended(20)
