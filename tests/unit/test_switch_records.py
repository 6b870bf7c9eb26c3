"""Switches on record, and what they tell of the next one."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from backends.records import MIGRATIONS, Records
from backends.switch_records import Past, StepTime, SwitchRecord, add, record_of, switches
from backends.switches import GivingWay, Switch, SwitchStep, Way, Yield

WOKEN = SwitchRecord(
    "1-b",
    "b",
    (GivingWay("a", Yield.SLEEP_1),),
    Way.WAKE_1,
    1.0,
    "done",
    None,
    1.0,
    (StepTime("drain", "a", 0.1), StepTime("sleep", "a", 0.3), StepTime("wake", "b", 0.6)),
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "records.sqlite")


def test_what_is_written_is_read_again_newest_first(records: Records) -> None:
    other = replace(WOKEN, id="2-c", server="c", gave_way=(GivingWay("b", Yield.STOP, "no room"),), at=2.0)
    failed = replace(WOKEN, id="3-a", server="a", gave_way=(), at=3.0, outcome="failed", error="why", took_s=None)
    for one in (other, failed, WOKEN):
        assert add(records, one)
    assert switches(records) == (failed, other, WOKEN)
    assert switches(records, limit=1) == (failed,)
    assert switches(records, "b") == (other, WOKEN)
    assert switches(records, "nobody") == ()


def test_a_switch_that_is_over_becomes_a_record() -> None:
    steps = (SwitchStep("sleep", "a", 1.0, 0.3, "note"), SwitchStep("wake", "b", 1.4))
    switch = Switch("1-b", "b", 1.0, steps, "restored", "no room")
    assert record_of(switch, Way.WAKE_1, [GivingWay("a", Yield.SLEEP_1)]) == replace(
        WOKEN, outcome="restored", error="no room", took_s=None, steps=(StepTime("sleep", "a", 0.3),)
    )


def test_the_past_is_told_by_medians_of_what_went_well(records: Records) -> None:
    assert Past(records).taking_s("b", Way.WAKE_1) is None
    for number, wake_s in enumerate((0.6, 0.7, 9.0)):
        steps = (StepTime("sleep", "a", 0.3 + number), StepTime("wake", "b", wake_s), StepTime("first-token", "b", 0.1))
        assert add(records, replace(WOKEN, id=f"{number}-b", steps=steps))
    assert add(records, replace(WOKEN, id="9-b", outcome="failed", steps=(StepTime("wake", "b", 90.0),)))
    past = Past(records)
    assert past.taking_s("b", Way.WAKE_1) == pytest.approx(0.8)
    assert past.giving_s("a", Yield.SLEEP_1) == pytest.approx(1.3)
    assert past.taking_s("b", Way.WAKE_2) is None
    assert past.giving_s("a", Yield.STOP) is None


def test_a_file_from_before_switches_is_brought_up_to_date(records: Records, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "records.sqlite") as old:
        old.executescript(MIGRATIONS[0])
        old.execute("PRAGMA user_version = 1")
    old.close()
    assert switches(records) == ()
    assert records.problem is None
    assert add(records, WOKEN)
    assert switches(records) == (WOKEN,)
