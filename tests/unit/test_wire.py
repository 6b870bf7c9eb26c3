"""What the keeper sends is read back as it was, and what it cannot have sent is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.snapshots import (
    BoxUpdate,
    Event,
    EventUpdate,
    Latency,
    Metrics,
    Missing,
    Series,
    Server,
    ServerRemoved,
    ServerUpdate,
    Snapshot,
    SnapshotUpdate,
    Update,
    dump,
)
from backends.starts import Stage
from backends.wire import WireError, read_as
from tests.unit.test_handover import SERVER
from tests.unit.test_keeper_parts import BOX

LATENCY = Latency(3, 0.2, 0.1, 0.3, 0.4, 0.01)
METRICS = Metrics(
    at=1.5,
    kv_cache_usage=0.25,
    running=2,
    waiting=Missing("not told"),
    prompt_tokens_per_s=1.0,
    generation_tokens_per_s=2.0,
    prompt_tokens_total=3,
    generation_tokens_total=4,
    prefix_cache_hit_rate=Missing("no queries"),
    preemptions_total=0,
    requests_total=7,
    ttft=LATENCY,
    itl=Missing("no samples"),
    e2e=LATENCY,
    kv_cache_tokens=1000,
    sleep_state="awake",
)
FULL = replace(SERVER, metrics=METRICS, gpus=("GPU-1",), gpu_indices=(0,), stage=Stage("weights", 2.0, 0.5, "1 of 2"))


@pytest.mark.parametrize(
    "update",
    [
        SnapshotUpdate(Snapshot(None, BOX, (SERVER, FULL))),
        BoxUpdate(BOX),
        ServerUpdate(FULL),
        ServerRemoved("qwen"),
        EventUpdate(Event(1.0, "qwen", "ready", "ready in 61 s")),
    ],
)
def test_updates_come_back_as_they_were(update: Update) -> None:
    assert read_as(Update, dump(update, Update)) == update


def test_series_and_lists_come_back_as_they_were() -> None:
    series = Series((1.0, 2.0), {"kv": (0.1, None)})
    assert read_as(Series, dump(series)) == series
    events = (Event(1.0, "a", "b", "c"),)
    assert read_as(tuple[Event, ...], dump(events, tuple[Event, ...])) == events


def test_a_key_from_the_future_is_left_out() -> None:
    assert read_as(Server, dump(SERVER).replace(b'{"name"', b'{"invented_later":1,"name"', 1)) == SERVER


@pytest.mark.parametrize("data", ["", "[1", "3", '{"name": "only"}', '{"type": "unheard of"}'])
def test_what_is_none_of_ours_is_told(data: str) -> None:
    with pytest.raises(WireError, match="the keeper sent something else"):
        read_as(Server if "only" in data else Update, data)
