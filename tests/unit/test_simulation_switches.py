"""The simulated box's sleep and switches: legal steps in the times measured, and refusals where there is no sense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from backends.errors import ConflictError, NoSuchServerError, UsageError
from backends.keeper.states import TRANSITIONS
from backends.readonly import ReadOnlyKeeper
from backends.simulated_lives import ASLEEP, TTL_S
from backends.simulation import SimulatedKeeper
from backends.snapshots import (
    Missing,
    Server,
    ServerState,
    ServerUpdate,
    StartRequest,
    SwitchRequest,
    SwitchUpdate,
    Update,
)
from backends.switches import Switch, Way, Yield

NOW = 1_790_000_000.0
AWAKE = "qwen2.5-7b"


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def listening(keeper: SimulatedKeeper) -> AsyncIterator[list[Update]]:
    heard: list[Update] = []

    async def listen() -> None:
        async for update in keeper.updates():
            heard.append(update)  # noqa: PERF401 (what was heard must be there while the stream goes on)

    task = asyncio.create_task(listen())
    try:
        yield heard
    finally:
        task.cancel()


def server(keeper: SimulatedKeeper, name: str) -> Server:
    return next(one for one in keeper.snapshot().servers if one.name == name)


async def over(heard: list[Update], clock: Clock, name: str, step_s: float = 0.1) -> Switch:
    """Let time go on until a switch to `name` is over."""
    async with asyncio.timeout(20):
        while True:
            for update in heard:
                if isinstance(update, SwitchUpdate) and update.switch.to == name and update.switch.outcome != "running":
                    return update.switch
            clock.now += step_s
            await asyncio.sleep(0.006)


def profile(name: str, **more: Any) -> StartRequest:
    return StartRequest({"name": name, "model": "a/b-7b", **more}, {})


async def test_a_switch_to_who_sleeps_takes_as_long_as_it_was_measured_to(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path, tick_s=0.005)
    (choice,) = [one for one in await keeper.switch_choices() if one.server == ASLEEP]
    assert choice.way is Way.WAKE_1
    assert [(one.server, one.how) for one in choice.giving_way] == [(AWAKE, Yield.SLEEP_1)]
    async with listening(keeper) as heard:
        begun = await keeper.switch(SwitchRequest(ASLEEP))
        assert begun.outcome == "running"
        assert (await keeper.switch(SwitchRequest(ASLEEP))).id == begun.id
        clock.now += 0.5
        (running,) = keeper.snapshot().switches
        assert [(step.name, step.server, step.took_s is None) for step in running.steps] == [
            ("drain", AWAKE, False),
            ("sleep", AWAKE, True),
        ]
        done = await over(heard, clock, ASLEEP)
    assert done.took_s == pytest.approx(1.34, abs=0.001)
    assert [step.name for step in done.steps] == ["drain", "sleep", "memory", "wake", "first-token"]
    assert choice.expected_s == pytest.approx(done.took_s)
    assert keeper.snapshot().switches == ()
    woken, sleeper = server(keeper, ASLEEP), server(keeper, AWAKE)
    assert (woken.state, woken.sleep) == (ServerState.READY, None)
    assert sleeper.state is ServerState.SLEEPING
    assert sleeper.sleep is not None
    assert sleeper.host_bytes == 28_000_000_000
    gpu = keeper.snapshot().box.gpus[2]
    assert isinstance(gpu.memory_used_bytes, int)
    assert not isinstance(gpu.memory_total_bytes, Missing)
    assert gpu.memory_used_bytes < gpu.memory_total_bytes
    for name in (ASLEEP, AWAKE):
        states = [one.server.state for one in heard if isinstance(one, ServerUpdate) and one.server.name == name]
        for before, after in pairwise(states):
            assert before is after or after in TRANSITIONS[before]


async def test_level_2_reads_the_weights_again_and_pins_nothing(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path, tick_s=0.005)
    async with listening(keeper) as heard:
        clock.now += 60
        assert (await keeper.sleep("mistral-7b", 2)).state is ServerState.FALLING_ASLEEP
        clock.now += 1
        asleep = server(keeper, "mistral-7b")
        assert asleep.sleep is not None
        assert (asleep.sleep.level, asleep.host_bytes) == (2, 0)
        await keeper.switch(SwitchRequest("mistral-7b"))
        done = await over(heard, clock, "mistral-7b")
    assert [step.name for step in done.steps] == ["wake", "weights", "kv-cache", "prefix-cache", "first-token"]
    assert done.took_s is not None
    assert 1.9 < done.took_s < 2.6


async def test_what_is_no_server_yet_starts_where_others_give_way(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper("1xH200", clock=clock, folder=tmp_path, tick_s=0.005)
    async with listening(keeper) as heard:
        await keeper.switch(SwitchRequest("one", profile("one", sleep=True, ttl=1)))
        assert (await over(heard, clock, "one", step_s=5)).steps[0].name == "start"
        await keeper.switch(SwitchRequest("two", profile("two"), drain_s=0))
        done = await over(heard, clock, "two", step_s=5)
        assert [(step.name, step.server) for step in done.steps[:1]] == [("stop", "one")]
        assert done.steps[0].note == "two takes the whole GPU"
        assert server(keeper, "one").state is ServerState.STOPPED
        assert server(keeper, "two").state is ServerState.READY


async def test_who_is_idle_for_long_sleeps_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path, tick_s=0.005)
    async with listening(keeper) as heard:
        await keeper.switch(SwitchRequest(ASLEEP))
        await over(heard, clock, ASLEEP)
        idle = server(keeper, ASLEEP).idle
        assert idle is not None
        assert idle.since is not None
        assert idle.ttl_s == TTL_S
        clock.now += TTL_S
        async with asyncio.timeout(20):
            while server(keeper, ASLEEP).state is not ServerState.SLEEPING:
                clock.now += 0.1
                await asyncio.sleep(0.006)


async def test_a_warm_spare_sleeps_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path)
    request = StartRequest({"name": "spare", "model": "a/b", "sleep": True}, {}, gpus=("4",), asleep=True)
    assert (await keeper.start(request)).state is ServerState.STARTING
    clock.now += 80
    assert server(keeper, "spare").state is ServerState.SLEEPING


async def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    keeper = SimulatedKeeper(clock=lambda: NOW, folder=tmp_path)
    with pytest.raises(ConflictError, match="cannot sleep"):
        await keeper.sleep("llama-3.3-70b")
    with pytest.raises(ConflictError, match="is sleeping"):
        await keeper.sleep(ASLEEP)
    with pytest.raises(NoSuchServerError):
        await keeper.switch(SwitchRequest("nobody"))
    watched = ReadOnlyKeeper(keeper)
    assert await watched.switch_choices() == await keeper.switch_choices()
    for request in (watched.sleep(AWAKE), watched.switch(SwitchRequest(ASLEEP))):
        with pytest.raises(UsageError, match="read-only"):
            await request
    assert server(keeper, ASLEEP).state is ServerState.SLEEPING
