"""The keeper's broadcast: what changes a server's state goes out at once, mere figures wait for the box's reading."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from backends.keeper.events import Hub
from backends.simulation import SimulatedKeeper
from backends.snapshots import BoxUpdate, Missing, ServerRemoved, ServerState, ServerUpdate

NOW = 1_790_000_000.0


async def test_figures_of_many_servers_go_out_with_the_box_in_one_batch() -> None:
    snapshot = SimulatedKeeper("8xH200", clock=lambda: NOW).snapshot()
    server, hub = snapshot.servers[0], Hub()
    with hub.subscribe() as subscription:
        batches = aiter(subscription.batches())
        hub.publish(ServerUpdate(server))
        assert await anext(batches) == [ServerUpdate(server)]
        waiting = asyncio.ensure_future(anext(batches))
        newer = [replace(server, metrics=Missing(f"reading {number}")) for number in range(50)]
        for one in newer:
            hub.publish(ServerUpdate(one))
            await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish(BoxUpdate(snapshot.box))
        assert await waiting == [ServerUpdate(newer[-1]), BoxUpdate(snapshot.box)]


async def test_figures_go_out_without_the_box_too() -> None:
    server, hub = SimulatedKeeper("8xH200", clock=lambda: NOW).snapshot().servers[0], Hub()
    with hub.subscribe() as subscription:
        batches = aiter(subscription.batches())
        hub.publish(ServerUpdate(server))
        await anext(batches)
        newer = ServerUpdate(replace(server, metrics=Missing("another reading")))
        hub.publish(newer)
        async with asyncio.timeout(30):
            assert await anext(batches) == [newer]


async def test_another_state_takes_what_waits_along_at_once() -> None:
    first, second = SimulatedKeeper("8xH200", clock=lambda: NOW).snapshot().servers[:2]
    hub = Hub()
    with hub.subscribe() as subscription:
        batches = aiter(subscription.batches())
        for server in (first, second):
            hub.publish(ServerUpdate(server))
        await anext(batches)
        figures = ServerUpdate(replace(first, metrics=Missing("another reading")))
        failed = ServerUpdate(replace(second, state=ServerState.FAILED, cause="out of memory"))
        for news in (figures, failed):
            hub.publish(news)
        assert await anext(batches) == [figures, failed]
        hub.publish(ServerRemoved(second.name))
        assert await anext(batches) == [ServerRemoved(second.name)]
