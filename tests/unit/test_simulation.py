"""The simulated box: the same each time under a frozen clock, and alive under one that runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from backends.errors import ConflictError, GpuBusyError, KeeperError, NoSuchGpuError, NoSuchServerError, UsageError
from backends.keeper.states import TRANSITIONS
from backends.simulation import SimulatedKeeper
from backends.snapshots import (
    Event,
    EventUpdate,
    Metrics,
    ServerState,
    ServerUpdate,
    SnapshotUpdate,
    StartRequest,
    Update,
    dump,
)
from backends.wire import read_as

NOW = 1_790_000_000.0


def request(name: str = "new", gpus: tuple[str, ...] | None = None, **profile: object) -> StartRequest:
    return StartRequest({"name": name, "model": "a/b", **profile}, {}, gpus=gpus)


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


async def until(heard: list[Update], kind: str) -> Event:
    async with asyncio.timeout(10):
        while True:
            for update in heard:
                if isinstance(update, EventUpdate) and update.event.kind == kind:
                    return update.event
            await asyncio.sleep(0.005)


def test_two_boxes_under_one_clock_are_equal_and_cross_the_wire(tmp_path: Path) -> None:
    one, other = (SimulatedKeeper(clock=lambda: NOW, folder=tmp_path) for _ in range(2))
    assert one.snapshot() == other.snapshot()
    assert one.snapshot().box.simulated
    assert one.snapshot() != SimulatedKeeper(clock=lambda: NOW, folder=tmp_path, seed=1).snapshot()
    update = SnapshotUpdate(one.snapshot())
    assert read_as(Update, dump(update)) == update


def test_it_begins_with_servers_that_serve_start_have_failed_and_sleep() -> None:
    snapshot = SimulatedKeeper(clock=lambda: NOW).snapshot()
    states = [server.state for server in snapshot.servers]
    assert states == [
        ServerState.READY,
        ServerState.READY,
        ServerState.STARTING,
        ServerState.FAILED,
        ServerState.SLEEPING,
    ]
    holders = [gpu.holder for gpu in snapshot.box.gpus]
    both = "qwen2.5-7b, qwen2.5-coder-7b"
    assert holders == ["llama-3.3-70b", "llama-3.3-70b", both, "mistral-7b", None, None, None, None]
    for server in snapshot.servers[:2]:
        assert isinstance(server.metrics, Metrics)
        assert 0 < float(server.metrics.kv_cache_usage) < 1  # type: ignore[arg-type]
    for gpu in snapshot.box.gpus:
        assert gpu.memory_used_bytes + gpu.memory_free_bytes == gpu.memory_total_bytes  # type: ignore[operator]


@pytest.mark.parametrize(("spec", "number"), [("0", 0), ("H100", 1), ("2xRTX4090,1xL40S", 3), ("16xA100", 16)])
def test_specs(spec: str, number: int) -> None:
    box = SimulatedKeeper(spec, clock=lambda: NOW).snapshot().box
    assert len(box.gpus) == number
    assert (box.no_gpus is None) == (number > 0)
    assert len({gpu.uuid for gpu in box.gpus}) == number


@pytest.mark.parametrize("spec", ["", "8xVoodoo", "x", "eight"])
def test_a_spec_that_says_nothing_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="cannot simulate"):
        SimulatedKeeper(spec)


async def test_a_server_starts_serves_stops_and_is_forgotten_by_legal_steps(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path, tick_s=0.005)
    async with listening(keeper) as heard:
        server = await keeper.start(request(gpus=("7",)))
        assert (server.state, server.gpu_indices) == (ServerState.STARTING, (7,))
        assert server.log_path is not None
        for _ in range(70):
            clock.now += 1
            await asyncio.sleep(0.006)
        assert (await until(heard, "ready")).text == "ready in 61 s"
        await keeper.stop("new")
        for _ in range(12):
            clock.now += 0.5
            await asyncio.sleep(0.006)
        event = await until(heard, "stopped")
        assert event.server == "new"
        steps = [u.server.state for u in heard if isinstance(u, ServerUpdate) and u.server.name == "new"]
        assert ServerState.DRAINING in steps
        for before, after in pairwise(steps):
            assert before is after or after in TRANSITIONS[before], (before, after)
        await keeper.forget("new")
        with pytest.raises(NoSuchServerError):
            await keeper.stop("new")
        log = Path(server.log_path).read_text().splitlines()
    stamped = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d .+")
    assert all(stamped.fullmatch(line) for line in log)
    assert log == sorted(log, key=lambda line: line[:29])
    assert "gpubox: ended with code 0, as asked" in log[-1]
    assert sum("Application startup complete" in line for line in log) == 1


async def test_restart_waits_for_the_end_and_starts_again(tmp_path: Path) -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock, folder=tmp_path, tick_s=0.005)
    async with listening(keeper) as heard:
        before = keeper.snapshot().servers[1]
        assert (await keeper.restart(before.name)).state is ServerState.DRAINING
        clock.now += 6
        await until(heard, "started")
        after = keeper.snapshot().servers[1]
        assert after.state is ServerState.STARTING
        assert after.log_path != before.log_path
        again = await keeper.restart("qwen2.5-14b")
        assert again.state is ServerState.STARTING
        assert again.cause is None


async def test_requests_that_cannot_be_met_are_refused_as_a_keeper_would() -> None:
    keeper = SimulatedKeeper(clock=lambda: NOW)
    with pytest.raises(GpuBusyError, match="GPU 0 is taken"):
        await keeper.start(request(gpus=("0",)))
    with pytest.raises(NoSuchGpuError):
        await keeper.start(request(gpus=("17",)))
    with pytest.raises(GpuBusyError, match="5 GPUs are needed"):
        await keeper.start(request(args={"tensor_parallel_size": 5}))
    with pytest.raises(ConflictError):
        await keeper.start(request("qwen2.5-7b"))
    with pytest.raises(ConflictError):
        await keeper.forget("qwen2.5-7b")
    with pytest.raises(ConflictError):
        await keeper.stop("qwen2.5-14b")
    with pytest.raises(NoSuchGpuError):
        await keeper.gpu_series("GPU-none")
    with pytest.raises(KeeperError, match="does not answer chat"):
        await keeper.connection("qwen2.5-7b")


async def test_auto_leaves_gpus_with_strangers_for_last_and_cpu_takes_none() -> None:
    keeper = SimulatedKeeper(clock=lambda: NOW)
    assert (await keeper.start(request("a", ("auto",), args={"tensor_parallel_size": 3}))).gpu_indices == (4, 5, 7)
    assert (await keeper.start(request("b"))).gpu_indices == (6,)
    assert (await keeper.start(request("c", ("cpu",)))).gpu_indices == ()


async def test_series_cover_the_last_hour_and_end_with_what_is_shown() -> None:
    keeper = SimulatedKeeper(clock=lambda: NOW)
    server = keeper.snapshot().servers[0]
    series = await keeper.server_series(server.name)
    assert series.at[-1] == NOW
    assert NOW - 3600 <= series.at[0] < NOW - 3500
    assert isinstance(server.metrics, Metrics)
    assert series.points["kv_cache_usage"][-1] == server.metrics.kv_cache_usage
    gpu = keeper.snapshot().box.gpus[0]
    assert (await keeper.gpu_series(gpu.uuid)).points["utilization"][-1] == gpu.utilization
    young = await keeper.server_series("qwen2.5-7b")
    assert len(young.at) < len(series.at)


async def test_totals_grow_as_their_rates_say() -> None:
    clock = Clock()
    keeper = SimulatedKeeper(clock=clock)
    figures = []
    for _ in range(50):
        metrics = keeper.snapshot().servers[0].metrics
        assert isinstance(metrics, Metrics)
        figures.append((metrics.generation_tokens_total, metrics.generation_tokens_per_s))
        clock.now += 2
    for (before, rate), (after, later) in pairwise(figures):
        grown = (after - before) / 2  # type: ignore[operator]
        assert min(rate, later) * 0.9 <= grown <= max(rate, later) * 1.1  # type: ignore[type-var,operator]
