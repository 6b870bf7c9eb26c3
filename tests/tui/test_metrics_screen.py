"""The metrics panel by its keys, over a keeper that says what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from backends.errors import KeeperError
from backends.simulation import SimulatedKeeper
from backends.snapshots import Metrics, Missing, Series, Server, ServerState, Snapshot, SnapshotUpdate, Update
from tui.app import GpuboxApp
from tui.widgets.metric_tile import MetricTile

NOW = 1_795_264_500.0


class StillKeeper(SimulatedKeeper):
    """A keeper whose state changes when the test says so; it notes which histories it was asked for."""

    def __init__(self, *servers: Server, refuses: bool = False) -> None:
        super().__init__(clock=lambda: NOW)
        self.asked: list[str] = []
        self._refuses = refuses
        self._still = replace(self.snapshot(), servers=servers)
        self._news: asyncio.Queue[Snapshot] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[Update]:
        yield SnapshotUpdate(self._still)
        while True:
            yield SnapshotUpdate(await self._news.get())

    def tell(self, *servers: Server) -> None:
        self._news.put_nowait(replace(self._still, servers=servers))

    async def server_series(self, name: str) -> Series:
        self.asked.append(name)
        if self._refuses:
            raise KeeperError("the keeper is gone")
        ats = tuple(NOW - 300 + second for second in range(300))
        return Series(ats, {"kv_cache_usage": (1.0,) * 300})

    async def gpu_series(self, uuid: str) -> Series:
        self.asked.append(uuid)
        return Series((), {})


def servers() -> tuple[Server, ...]:
    return SimulatedKeeper(clock=lambda: NOW).snapshot().servers


def with_usage(server: Server, usage: float | Missing, at: float = NOW) -> Server:
    assert isinstance(server.metrics, Metrics)
    return replace(server, metrics=replace(server.metrics, kv_cache_usage=usage, at=at))


class Screen:
    """The app on its metrics screen, and what it shows."""

    def __init__(self, pilot: Pilot[None]) -> None:
        self.pilot, self.app = pilot, pilot.app

    @property
    def tiles(self) -> dict[str, str]:
        """What is drawn, by the tiles' titles."""
        drawn = [tile.render().plain.splitlines() for tile in self.app.screen.query(MetricTile)]
        return {lines[0].strip("─ ").split(" · ")[0]: "\n".join(lines) for lines in drawn if lines[0].strip("─ ")}

    def tile(self, title: str) -> str:
        return self.tiles.get(title, "")

    def said(self, part: str) -> str:
        return str(self.app.screen.query_one(part, Static).content)

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain: {what}; {self.tiles}"
            await self.pilot.pause(0.01)


async def opened(pilot: Pilot[None]) -> Screen:
    await pilot.press("5")
    await pilot.pause()
    return Screen(pilot)


@pytest.mark.parametrize(("size", "columns"), [((80, 24), 2), ((120, 40), 3), ((200, 50), 4)])
async def test_every_figure_has_its_tile_and_all_are_in_view(size: tuple[int, int], columns: int) -> None:
    app = GpuboxApp(StillKeeper(servers()[0]), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: len(screen.tiles) == 11, "nine figures and two GPUs")
        tiles = list(app.screen.query(MetricTile))
        await screen.until(lambda: len({tile.region.x for tile in tiles}) == columns, "the columns")
        assert max(tile.region.bottom for tile in tiles) < size[1]
        assert min(tile.size.height for tile in tiles) >= 3
        for title in ("KV cache usage", "Requests", "TTFT", "ITL", "Preemptions", "GPU 0", "GPU 1"):
            assert title in screen.tiles


async def test_history_comes_from_the_keeper_and_goes_on_with_each_reading() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, 0.5))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.tile("KV cache usage").splitlines()[-1:] == ["█" * 37 + "▄"], "its hour")
        assert set(keeper.asked) == {server.name, *server.gpus}
        asked = len(keeper.asked)
        keeper.tell(with_usage(server, 0.92, NOW + 1))
        await screen.until(lambda: "92%" in screen.tile("KV cache usage"), "the newer figure")
        assert len(keeper.asked) == asked


async def test_without_a_history_the_charts_begin_now() -> None:
    app = GpuboxApp(StillKeeper(with_usage(servers()[0], 0.25), refuses=True), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.tile("KV cache usage").endswith(" ▂"), "one column")


async def test_what_is_missing_is_said_once_for_all_or_in_its_tile() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, Missing("not told by [this] engine")))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "· not told by [t" in screen.tile("KV cache usage"), "the reason")
        assert screen.tile("KV cache usage").splitlines()[1].strip() == "–"
        assert "–" not in screen.tile("Requests")
        keeper.tell(replace(server, metrics=Missing("not running"), state=ServerState.STOPPED))
        await screen.until(lambda: "no figures: not running" in screen.said("#head"), "the reason for all")
        assert "–" in screen.tile("Requests")
        assert "not running" not in "".join(screen.tiles.values())


async def test_other_servers_windows_and_nothing_at_all() -> None:
    two = servers()[:2]
    keeper = StillKeeper(*two)
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "GPU 1" in screen.tiles, "the first server's GPUs")
        assert "last 5 min" in screen.said("#head")
        await pilot.press("m")
        assert "last 15 min" in screen.said("#head")
        await pilot.press("m", "m")
        assert "last 5 min" in screen.said("#head")
        await pilot.press("right_square_bracket")
        await screen.until(lambda: "GPU 2" in screen.tiles and "GPU 1" not in screen.tiles, "the other's GPU")
        assert two[1].name in screen.said("#head")
        keeper.tell(replace(two[1], gpus=(), gpu_indices=()))
        await screen.until(lambda: "CPU and memory of the box" in screen.tiles, "the CPU")
        assert not [title for title in screen.tiles if title.startswith("GPU")]
        keeper.tell()
        await screen.until(lambda: "Press 2" in screen.said("#empty"), "what to press")
        assert not app.screen.query_one("#tiles").display


async def test_a_hidden_screen_does_nothing_and_catches_up() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, 0.5))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "50%" in screen.tile("KV cache usage"), "the figure")
        tile = app.screen.query(MetricTile).first()
        await pilot.press("1")
        asked = len(keeper.asked)
        keeper.tell(with_usage(server, 0.7, NOW + 1))
        await pilot.pause(0.2)  # Nothing is to happen, so there is nothing to wait for.
        assert "50%" in tile.render().plain
        assert keeper.asked[asked:].count(server.name) == 0
        await pilot.press("5")
        await screen.until(lambda: "70%" in screen.tile("KV cache usage"), "the newer figure")
        assert server.name in keeper.asked[asked:]
