"""The metrics panel by its keys, over a keeper that says what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from backends.errors import KeeperError
from backends.simulation import SimulatedKeeper
from backends.snapshots import Event, Metrics, Missing, Series, Server, ServerState, Snapshot, SnapshotUpdate, Update
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.screens.explain import ExplainScreen
from tui.screens.metrics import MOST_AT_ONCE, MetricsScreen
from tui.widgets.metric_chart import MetricChart
from tui.widgets.metric_readings import METRICS

NOW = 1_795_264_500.0
MACHINE = ("GPU memory", "GPU utilization", "GPU power", "CPU of the box", "Memory of the box")


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
        drawn = [chart.text.splitlines() for chart in self.app.screen.query(MetricChart) if chart.text.strip()]
        titles = (*(metric.title for metric in METRICS), *MACHINE)
        return {title: "\n".join(lines) for lines in drawn for title in titles if lines[0][2:].startswith(title)}

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
        await screen.until(lambda: len(screen.tiles) == 12, "nine figures and three of its GPUs")
        tiles = list(app.screen.query(MetricChart))
        await screen.until(lambda: len({tile.region.x for tile in tiles}) == columns, "the columns")
        assert max(tile.region.bottom for tile in tiles) < size[1]
        assert min(tile.size.height for tile in tiles) >= 3
        for title in ("KV cache usage", "Requests", "TTFT", "ITL", "Preemptions", "GPU memory", "GPU power"):
            assert title in screen.tiles


async def test_history_comes_from_the_keeper_and_goes_on_with_each_reading() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, 0.5))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.tile("KV cache usage").splitlines()[-1:] == ["   0%┤" + "█" * 31], "its hour")
        assert set(keeper.asked) == {server.name, *server.gpus}
        asked = len(keeper.asked)
        keeper.tell(with_usage(server, 0.92, NOW + 1))
        await screen.until(lambda: "92%" in screen.tile("KV cache usage"), "the newer figure")
        assert len(keeper.asked) == asked


async def test_without_a_history_the_charts_begin_now() -> None:
    app = GpuboxApp(StillKeeper(with_usage(servers()[0], 0.25), refuses=True), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.tile("KV cache usage").endswith(" ▄"), "one column")


async def test_what_is_missing_is_said_once_for_all_or_in_its_tile() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, Missing("not told by [this] engine")))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "· not told by [t" in screen.tile("KV cache usage"), "the reason")
        assert "KV cache usage – · not" in screen.tile("KV cache usage")
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
        await screen.until(lambda: "of 2 GPUs" in screen.tile("GPU power"), "the first server's GPUs")
        assert "last 5 min" in screen.said("#head")
        await pilot.press("m")
        assert "last 15 min" in screen.said("#head")
        await pilot.press("m", "m")
        assert "last 1 min" in screen.said("#head")
        await pilot.press("m")
        assert "last 5 min" in screen.said("#head")
        await pilot.press("right_square_bracket")
        await screen.until(lambda: "of 2 GPUs" not in screen.tile("GPU power"), "the other's GPU")
        assert two[1].name in screen.said("#head")
        keeper.tell(replace(two[1], gpus=(), gpu_indices=()))
        await screen.until(lambda: "CPU of the box" in screen.tiles, "the CPU")
        assert not [title for title in screen.tiles if title.startswith("GPU")]
        keeper.tell()
        await screen.until(lambda: "Press 2" in screen.said("#empty"), "what to press")
        assert not app.screen.query_one("#charts").display


async def test_a_hidden_screen_does_nothing_and_catches_up() -> None:
    server = servers()[0]
    keeper = StillKeeper(with_usage(server, 0.5))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "50%" in screen.tile("KV cache usage"), "the figure")
        tile = app.screen.query(MetricChart).first()
        await pilot.press("1")
        asked = len(keeper.asked)
        keeper.tell(with_usage(server, 0.7, NOW + 1))
        await pilot.pause(0.2)  # Nothing is to happen, so there is nothing to wait for.
        assert "50%" in tile.text
        assert keeper.asked[asked:].count(server.name) == 0
        await pilot.press("5")
        await screen.until(lambda: "70%" in screen.tile("KV cache usage"), "the newer figure")
        assert server.name in keeper.asked[asked:]


async def test_the_cursor_reads_all_charts_at_one_moment_and_marks_are_gone_to() -> None:
    server = servers()[0]
    happened = Event(NOW - 150, server.name, "loadtest", "load test began")
    keeper = StillKeeper(with_usage(server, 0.5))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        app.heard = (happened,)
        screen = await opened(pilot)
        await screen.until(lambda: "█" * 30 in screen.tile("KV cache usage"), "its hour")
        assert "◆" in screen.said("#times")
        column = screen.tile("KV cache usage").splitlines()
        assert "KV cache usage 50%" in column[0]
        await pilot.press("L")  # There is nothing later than now.
        assert "ago" not in screen.said("#head")
        await pilot.press("H")
        await screen.until(lambda: "load test began" in screen.said("#head"), "what happened")
        assert "KV cache usage 100%" in screen.tile("KV cache usage")
        assert "Generation –" in screen.tile("Generation"), "a gap is no zero"
        places = {line.index("│", 6) for line in screen.tile("Generation").splitlines()[1:]}
        assert places == {line.index("│", 6) for line in screen.tile("TTFT").splitlines()[1:]}
        await pilot.press("right")
        await screen.until(lambda: "load test began" not in screen.said("#head"), "a column on")
        assert "ago" in screen.said("#head")
        await pilot.press("escape")
        await screen.until(lambda: "last 5 min" in screen.said("#head"), "now again")


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_a_chart_is_chosen_shown_alone_and_explained(size: tuple[int, int]) -> None:
    app = GpuboxApp(StillKeeper(servers()[0]), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: len(screen.tiles) == 12, "all charts")
        await pilot.press("j", "j")
        await screen.until(lambda: screen.tile("Generation").startswith("▸"), "the third is chosen")
        metrics = app.screen
        assert isinstance(metrics, MetricsScreen)
        assert metrics.explained()[0] == "generation_tokens_per_s"
        assert set(metrics.explained()) <= EXPLANATIONS.keys()
        await pilot.press("enter")
        await screen.until(lambda: list(screen.tiles) == ["Generation"], "it alone")
        await screen.until(lambda: len(screen.tile("Generation").splitlines()) > size[1] - 8, "all the room")
        ticks = [line[:5].strip() for line in screen.tile("Generation").splitlines()[2:]]
        assert 4 <= len([tick for tick in ticks if tick]) <= 6, "three to five steps from 0"
        await pilot.press("i")
        await screen.until(lambda: isinstance(app.screen, ExplainScreen), "what it means")
        await pilot.press("escape", "escape")
        await screen.until(lambda: app.screen is metrics and len(screen.tiles) == 12, "all again")


async def test_an_engine_that_tells_nothing_has_its_gpus_and_says_so() -> None:
    keeper = StillKeeper(replace(servers()[0], metrics=Missing("transformers tells no metrics")))
    keeper.server_series = _nothing  # type: ignore[method-assign]
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "no figures: transformers tells" in screen.said("#head"), "why")
        await screen.until(lambda: set(screen.tiles) == set(MACHINE[:3]), "its GPUs alone")


async def test_an_hour_of_everything_is_drawn_in_parts_so_that_keys_come_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ats = tuple(NOW - 3600 + second for second in range(3600))
    names = [chart.series for metric in METRICS for chart in metric.charts]
    hour = Series(ats, dict.fromkeys(names, (1.0,) * 3600))
    at_once: list[int] = []
    lay_out = MetricsScreen._lay_out

    def noting(screen: MetricsScreen, *given: Any) -> None:
        before = screen._summed
        lay_out(screen, *given)
        at_once.append(screen._summed - before)

    async def series(_: str) -> Series:
        return hour

    monkeypatch.setattr(MetricsScreen, "_lay_out", noting)
    keeper = StillKeeper(servers()[0])
    monkeypatch.setattr(keeper, "server_series", series)
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = await opened(pilot)
        await pilot.press("m", "m")
        await screen.until(lambda: "last 60 min" in screen.said("#head"), "the hour")
        await screen.until(lambda: sum(at_once) >= 2 * 21 * 3600, "both windows of every figure")
        assert max(at_once) <= MOST_AT_ONCE + 4 * 3600
        await pilot.pause()
        assert all(screen.tile(metric.title) for metric in METRICS)


async def test_one_request_is_told_as_one() -> None:
    one = servers()[0]
    assert isinstance(one.metrics, Metrics)
    keeper = StillKeeper(replace(one, metrics=replace(one.metrics, requests_total=1)))
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(100, 40)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "1 request ·" in screen.said("#head"), "the count")


async def test_the_memory_of_each_gpu_of_a_server_can_be_looked_at() -> None:
    app = GpuboxApp(StillKeeper(*servers()[:2]), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "GPU 0, fullest of 2 GPUs" in screen.said("#memory"), "the fullest")
        for expected in ("GPU 0, one of 2 GPUs", "GPU 1, one of 2 GPUs", "fullest of 2 GPUs"):
            await pilot.press("g")
            await screen.until(lambda said=expected: said in screen.said("#memory"), expected)  # type: ignore[misc]
        await pilot.press("right_square_bracket")
        await screen.until(lambda: screen.said("#memory").startswith("GPU 2 "), "a server of one GPU")
        assert not app.screen.check_action("gpu", ()), "no other to look at"


async def _nothing(name: str) -> Series:
    return Series((), {})
