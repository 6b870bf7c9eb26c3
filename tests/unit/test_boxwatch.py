"""The keeper's eye on the box: what a reading says, and what is said between two of them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

from backends.gpu_readings import Xid
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.metrics.series import SeriesStore
from backends.simulation import SimulatedKeeper
from backends.snapshots import Box, Grant, Missing


async def test_a_grant_that_ended_is_not_shown_until_the_next_reading() -> None:
    read = SimulatedKeeper().snapshot().box
    readings: list[object] = []
    held = {read.gpus[0].uuid: (Grant("first", "me", None, ours=True),)}

    def sample() -> object:
        readings.append(read)
        return read

    watch = BoxWatch(sample, Hub(), SeriesStore(), lambda: held, dict)  # type: ignore[arg-type]
    assert [grant.server for grant in (await watch.box()).gpus[0].grants] == ["first"]
    held.clear()
    assert (await watch.box()).gpus[0].grants == ()
    assert len(readings) == 1


async def test_each_xid_is_told_once_to_the_servers_of_its_gpu_or_to_the_box() -> None:
    plain = SimulatedKeeper().snapshot().box
    grants = {plain.gpus[0].uuid: (Grant("first", "me"), Grant("theirs", "bob", None, ours=False))}

    def with_xids(*xids: tuple[Xid, ...] | Missing) -> Box:
        gpus = [replace(gpu, xids=xids[gpu.index] if gpu.index < len(xids) else ()) for gpu in plain.gpus]
        return replace(plain, gpus=tuple(gpus))

    readings = [
        with_xids((), Missing("not supported")),
        with_xids((Xid(10.0, 31),), (Xid(10.0, 79),)),
        with_xids((Xid(10.0, 31, 5), Xid(12.0, 48)), (Xid(10.0, 79),)),
        with_xids((Xid(10.0, 31, 9), Xid(12.0, 48)), Missing("the driver was restarted")),
    ]
    done = asyncio.Event()

    def sample() -> Box:
        if len(readings) == 1:
            loop.call_soon_threadsafe(done.set)
        return readings.pop(0) if len(readings) > 1 else readings[0]

    loop, hub = asyncio.get_running_loop(), Hub()
    watch = BoxWatch(sample, hub, SeriesStore(), lambda: grants, dict)
    running = asyncio.create_task(watch.run(lambda: True))
    async with asyncio.timeout(30):
        while not done.is_set():
            watch.look_now()
            await asyncio.sleep(0.01)
        await watch.fresh()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    told = [(event.at, event.server, event.text.partition(",")[0]) for event in hub.history if event.kind == "xid"]
    assert told == [(10.0, "first", "GPU 0: XID 31"), (10.0, "", "GPU 1: XID 79"), (12.0, "first", "GPU 0: XID 48")]
