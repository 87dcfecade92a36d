"""The benchmarks run, and write what they say they write. No time is asserted: machines differ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import pictures, results
from benchmarks.measuring import interleaved
from benchmarks.processes import processes
from benchmarks.results import Result, at_least, at_most, at_quantiles, beside
from deploy.local.servers import variable
from tests.integration.reading import until

CHEAP = ("append", "bulk", "transaction", "startup")
"""Those that need PostgreSQL alone, a few seconds, and nothing of the dependency group ``bench``."""


@pytest.mark.timeout(300)
def test_the_quick_benchmarks_run_and_write_well_formed_results(address, tmp_path: Path) -> None:
    environment = os.environ | {variable("postgres"): address("postgres")}
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), *CHEAP]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", *(f"{name}.json" for name in CHEAP)}
    for name in CHEAP:
        for found in results.read(tmp_path / f"{name}.json"):
            assert found["ours"] > 0
            assert (found["reference"] is None) == (found["reference_name"] is None)
            assert set(found["samples"]) == {"ours", found["reference_name"] or "ours"}
            assert found["machine"]["postgresql"]
            assert f"| {found['question']} |" in (tmp_path / "README.md").read_text("utf-8")
    (trips, *_) = results.read(tmp_path / "transaction.json")
    assert (trips["ours"], trips["met"]) == (1, True)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "given", "questions"),
    [
        ("projector", ["postgres", "tantivy"], ["postgres, first load", "tantivy, full update"]),
        (
            "rebuild",
            ["postgres"],
            ["postgres, rebuild of streams of one event", "postgres, rebuild of streams of 10 events"],
        ),
        ("search", ["--mode", "embedded"], ["semantic search", "hybrid search"]),
        ("rebuild_growth", [], ["rebuild of 200 events beside one of 100: memory"]),
        (
            "verify",
            ["postgres", "tantivy"],
            ["postgres, quick verification: time", "tantivy, quick verification: time"],
        ),
        ("chain", ["--mode", "embedded"], ["whole chain, embedded", "whole chain, embedded, first aim"]),
        ("idle", [], ["processor of an idle relay", "growth of all tables while idle"]),
    ],
)
def test_the_benchmarks_of_stores_run_on_those_that_need_no_server(
    name: str, given: list[str], questions: list[str], address, tmp_path: Path
) -> None:
    environment = os.environ | {variable("postgres"): address("postgres")}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--results", str(tmp_path), *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = {document["question"]: document for document in results.read(tmp_path / f"{name}.json")}
    assert set(questions) <= set(found)
    assert all(document["ours"] >= 0 for document in found.values())


@pytest.mark.timeout(240)
def test_a_benchmark_that_is_told_to_end_takes_along_what_it_has_started(address) -> None:
    environment = os.environ | {variable("postgres"): address("postgres")}
    with subprocess.Popen([sys.executable, "-m", "benchmarks", "--quick", "idle"], env=environment) as running:
        started: list[psutil.Process] = []

        def relay_and_projectors() -> bool:
            started[:] = psutil.Process(running.pid).children(recursive=True)
            return len([one for one in started if {"relay", "project"} & set(one.cmdline())]) >= 2

        until(relay_and_projectors, "a relay and a projector")
        running.terminate()
        assert running.wait(60) != 0
    assert [one for one in started if one.is_running()] == []


@pytest.mark.timeout(240)
def test_the_quick_relay_benchmark_drains_rows_into_a_real_kafka(address, tmp_path: Path) -> None:
    environment = os.environ | {variable(name): address(name) for name in ("postgres", "kafka")}
    command = [sys.executable, "-m", "benchmarks.relay", "--quick", "--only", "cdc, confluent"]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rate, memory = results.read(tmp_path / "relay.json")
    assert (rate["reference_name"], memory["unit"]) == ("bare confluent", "MiB")
    assert min(rate["ours"], rate["reference"], memory["ours"]) > 0


@pytest.mark.timeout(240)
def test_the_quick_latency_benchmark_times_events_through_a_real_kafka(address, tmp_path: Path) -> None:
    environment = os.environ | {variable(name): address(name) for name in ("postgres", "kafka")}
    command = [sys.executable, "-m", "benchmarks.latency", "--quick", "--only", "poll", "--results", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = results.read(tmp_path / "latency.json")
    assert {document["unit"] for document in found} == {"ms"}
    assert len(found) == 6
    assert all(document["ours"] > 0 for document in found)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("growth", "drain of 12,000 waiting rows beside one of 6,000: rate"),
        ("outbox_size", "all tables but the log after 2,000 relayed events"),
    ],
)
def test_the_benchmarks_of_rows_that_wait_run_on_a_real_kafka(
    name: str, question: str, address, tmp_path: Path
) -> None:
    environment = os.environ | {variable(server): address(server) for server in ("postgres", "kafka")}
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    found = {document["question"]: document for document in results.read(tmp_path / f"{name}.json")}
    assert found[question]["ours"] > 0


RUNNABLE = re.compile(r"^    run(_on_rows)?\(\"", re.MULTILINE)


def test_every_benchmark_is_one_that_make_bench_runs() -> None:
    folder = Path(benchmarks.__file__).parent
    runnable = {path.stem for path in folder.glob("*.py") if RUNNABLE.search(path.read_text("utf-8"))}
    assert runnable == set(benchmarks.BENCHMARKS)


def test_a_picture_has_a_line_for_each_contender_with_the_points_in_the_order_of_their_sizes() -> None:
    appending, draining, *_ = pictures.PICTURES
    found = [
        Result(f"append, {size} events a transaction", "events/s", {"ours": [ours], "psycopg": [theirs]}).document()
        for size, ours, theirs in (("1,000", 30.0, 40.0), ("1", 3.0, 5.0))
    ]
    assert pictures.points(appending, found) == {"ours": [(1, 3), (1000, 30)], "psycopg": [(1, 5), (1000, 40)]}
    question = "drain of 300 waiting rows beside one of 100: rate"
    grown = Result(question, "rows/s", {"ours": [8.0], "100 rows": [9.0]}).document()
    assert pictures.points(draining, [grown]) == {"ours": [(100, 9), (300, 8)]}
    drawn = ElementTree.fromstring(pictures.svg(appending, pictures.points(appending, found)))
    assert len(drawn.findall("{*}polyline")) == 2
    assert {"ours", "psycopg", "1", "1,000"} <= {text.text for text in drawn.findall("{*}text")}


def test_the_picture_of_latency_leaves_ratios_out() -> None:
    question = "commit to a consumer of Kafka, 200/s"
    found = [
        Result(f"{question}, cdc, p50", "ms", {"ours": [1.5]}).document(),
        Result(f"{question}, Debezium, p50", "ms", {"ours": [3.0]}).document(),
        Result(f"{question}, cdc beside Debezium, p50", "ms", {"ours": [1.5], "Debezium": [3.0]}).document(),
    ]
    assert pictures.points(pictures.PICTURES[-1], found) == {"cdc, p50": [(200, 1.5)], "Debezium, p50": [(200, 3.0)]}


def test_quantiles_are_taken_of_each_round_and_compared_within_it() -> None:
    ours, theirs = [[1.0] * 98 + [8.0, 9.0], [2.0] * 100], [[2.0] * 100, [8.0] * 100]
    targets = {"p50": at_most(1.0), "p99": at_most(1.0)}
    p50, p99 = at_quantiles("commit to seen", "ms", {"ours": ours, "theirs": theirs}, targets)
    assert (p50.question, p50.samples) == ("commit to seen, p50", {"ours": [1.0, 2.0], "theirs": [2.0, 8.0]})
    assert (p50.ratio, p50.met) == (0.375, True)
    assert p99.samples["ours"][0] > 8.0
    assert (p99.ratio, p99.met) == ((p99.samples["ours"][0] / 2 + 0.25) / 2, False)


def test_contenders_take_turns_in_another_order_each_round_and_the_warm_up_is_not_kept() -> None:
    order: list[str] = []

    def turn(name: str, figure: float) -> float:
        order.append(name)
        return figure

    figures = interleaved({"a": lambda: turn("a", 1.0), "b": lambda: turn("b", 2.0)}, rounds=2)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert figures == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_the_ratio_is_the_median_of_the_rounds_ratios_and_is_what_the_target_bounds() -> None:
    samples = {"append": [8.0, 5.0, 90.0], "raw": [10.0, 10.0, 100.0]}
    found = beside("rate", samples, ("append", "raw"), "events/s", at_least(0.8))
    assert (found.ratio, found.ours, found.reference, found.met) == (0.8, 8.0, 10.0, True)
    assert beside("rate", samples, ("append", "raw"), "events/s", at_least(0.81)).met is False
    assert Result("latency", "ms", {"ours": [2.0, 4.0]}, at_most(2.9)).met is False
    assert Result("latency", "ms", {"ours": [2.0, 4.0]}).met is None


def test_a_process_that_has_ended_by_itself_is_named_as_the_reason() -> None:
    with pytest.raises(RuntimeError, match=r"outbox relay ended: .*relay\.nonsense") as failed:
        with processes({"OUTBOX_RELAY__NONSENSE": "1"}, [["relay"]]):
            children = psutil.Process().children()
            until(lambda: any(one.status() == psutil.STATUS_ZOMBIE for one in children), "the relay ends")
            raise TimeoutError("nothing came")
    assert isinstance(failed.value.__cause__, TimeoutError)
