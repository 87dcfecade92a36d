"""Slots that somebody drops again and again while producers write cost a bridge each, and not one event."""

from __future__ import annotations

from dataclasses import replace

import psycopg

from tests.property.test_relay_order import CDC, SEED, Storm, check, finish
from tests.relaying import STREAMING, Recorder, drop_slots, leading, relaying, until, without_slots

DROPS = 20
QUICK = replace(CDC, lease_s=1.0, retry_s=0.005)


def test_slots_dropped_twenty_times_under_load_lose_and_invert_nothing(database):
    print(f"OUTBOX_TEST_SEED={SEED}")
    storm, recorder = Storm(database, SEED, long_s=0.3), Recorder()
    with without_slots(database), psycopg.connect(database, autocommit=True) as operator:
        with storm.raging(), relaying(database, recorder, QUICK):
            dropped = 0
            while dropped < DROPS:
                until(lambda: operator.execute(STREAMING).fetchone(), 60)
                dropped += drop_slots(operator)
        with leading(database, recorder, CDC) as leader:
            finish(leader, storm, recorder)
    check(storm, recorder)


def test_engines_changed_from_term_to_term_under_load_lose_and_invert_nothing(database):
    """As a deployment does: the old process is still running when the new one, with the other engine, takes over."""
    print(f"OUTBOX_TEST_SEED={SEED}")
    storm, recorder = Storm(database, SEED, long_s=0.2), Recorder()
    with psycopg.connect(database, autocommit=True) as looking, without_slots(database), storm.raging():
        for n in range(12):
            with relaying(database, recorder, QUICK if n % 2 else replace(QUICK, engine="poll")):
                if n % 2:
                    until(lambda: looking.execute(STREAMING).fetchone())
                before = len(recorder.messages)
                until(lambda before=before: len(recorder.messages) > before + 50)
    with without_slots(database), leading(database, recorder, CDC) as leader:
        finish(leader, storm, recorder)
    check(storm, recorder)
