"""The box screen: from no GPU to sixteen, with readings that are missing, in a small terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from textual.pilot import Pilot

from backends.snapshots import BoxUpdate, Gpu, GpuProcess, Missing, Series, Server, Snapshot, SnapshotUpdate
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.format import GIB
from tui.screens.box import BoxScreen

MIXED = "5xH200,2xRTX4090,1xL40S,8xH100"


def with_gpu(snapshot: Snapshot, place: int, gpu: Gpu) -> Snapshot:
    gpus = snapshot.box.gpus
    return replace(snapshot, box=replace(snapshot.box, gpus=(*gpus[:place], gpu, *gpus[place + 1 :])))


def row(pilot: Pilot[None], index: int) -> list[str]:
    lines = shown(pilot).splitlines()
    start = next(number for number, line in enumerate(lines) if "Memory, GiB" in line)
    return lines[start + 1 + index].split()


def drawn(pilot: Pilot[None], title: str) -> bool:
    """Whether both the table and the details of a GPU stand on the screen: one may come a frame before the other."""
    return "Memory, GiB" in shown(pilot) and title in shown(pilot)


async def test_sixteen_gpus_fit_into_80_by_24_with_details_below() -> None:
    link = FakeLink(simulated(MIXED))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 · NVIDIA H200"), "the details")
        for gpu in link.state.box.gpus:
            cells = row(pilot, gpu.index)
            assert cells[0] == str(gpu.index)
            assert isinstance(gpu.memory_used_bytes, int)
            assert isinstance(gpu.memory_total_bytes, int)
            figures = f"{gpu.memory_used_bytes / GIB:.1f}/{gpu.memory_total_bytes / GIB:.1f}"
            assert figures in cells, cells
            assert any(cell.endswith("%") for cell in cells)
        assert row(pilot, 5)[1:3] == ["RTX", "4090"]
        assert "VLLM::Worker_TP0" in shown(pilot)
        assert all(len(line) <= 80 for line in shown(pilot).splitlines())


async def test_rows_say_whose_each_gpu_is() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 ·"), "the details")
        assert row(pilot, 0)[-2:] == ["●", "llama-3.3-70b"]
        assert row(pilot, 3)[-2:] == ["◐", "mistral-7b"]
        assert row(pilot, 4)[-1] == "free"
        assert row(pilot, 6)[-2:] == ["▲", "alice"]


async def test_the_cursor_chooses_whose_processes_are_shown() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 ·"), "the first GPU")
        await pilot.press(*["down"] * 6)
        await until(pilot, lambda: drawn(pilot, "GPU 6 ·"), "the seventh GPU")
        assert "31337  alice" in shown(pilot)
        assert "▒ foreign" in shown(pilot)
        assert "python train.py" in shown(pilot)
        await pilot.press("k", "k", "j")
        await until(pilot, lambda: drawn(pilot, "GPU 5 ·"), "the sixth GPU")


async def test_details_that_do_not_fit_are_counted_and_scrolled_to() -> None:
    snapshot = simulated(MIXED)
    processes = tuple(GpuProcess(40_000 + n, f"job {n}", "bob", GIB) for n in range(9))
    crowded = replace(snapshot.box.gpus[0], processes=processes, grants=())
    app = GpuboxApp(FakeLink(with_gpu(snapshot, 0, crowded)), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "more: Ctrl+↓" in shown(pilot), "the hint")
        assert "job 8" not in shown(pilot)
        await pilot.press(*["ctrl+down"] * 9)
        await until(pilot, lambda: "job 8" in shown(pilot), "the last process")
        await pilot.press(*["ctrl+up"] * 9)
        await until(pilot, lambda: "job 8" not in shown(pilot), "the first again")


async def test_a_missing_reading_is_a_dash_and_its_reason_stands_in_the_details() -> None:
    snapshot = simulated()
    gone = Missing("NVML: GPU is lost")
    broken = replace(
        snapshot.box.gpus[0],
        memory_used_bytes=gone,
        memory_free_bytes=gone,
        utilization=gone,
        temperature_c=gone,
        power_w=gone,
        power_limit_w=Missing("not supported"),
        processes=Missing("no permission"),
        refusal="it fell off the bus",
        grants=(),
    )
    app = GpuboxApp(FakeLink(with_gpu(snapshot, 0, broken)), clock=lambda: NOW)
    async with app.run_test(size=(80, 40)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 ·"), "the details")
        cells = row(pilot, 0)
        assert "–/139.8" in cells
        assert "0%" not in cells
        assert "0.0/139.8" not in cells
        text = shown(pilot)
        assert "⊘ cannot be assigned: it fell off the bus" in text
        assert "utilization – NVML: GPU is lost" in text
        assert "power limit – not supported" in text
        assert "processes – no permission" in text


async def test_a_box_without_gpus_says_so_and_shows_cpu_and_memory() -> None:
    snapshot = simulated("0")
    snapshot = replace(snapshot, box=replace(snapshot.box, no_gpus="libnvidia-ml.so.1 is not here"))
    app = GpuboxApp(FakeLink(snapshot), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "no GPU that gpubox can use" in shown(pilot), "the statement")
        text = shown(pilot)
        assert "libnvidia-ml.so.1 is not here" in text
        assert "192 cores" in text
        assert "2.0" not in text.splitlines()[0]
        assert "of 1.97 TiB" in text
        assert "Memory, GiB" not in text


async def test_gpus_that_come_back_are_shown_again() -> None:
    link = FakeLink(simulated("0"))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "no GPU that gpubox can use" in shown(pilot), "no GPU")
        link.say(BoxUpdate(simulated().box))
        await until(pilot, lambda: "8 × H200" in shown(pilot), "eight GPUs")
        await until(pilot, lambda: "no GPU that gpubox can use" not in shown(pilot), "the end of what it said")


async def test_a_hidden_screen_does_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    shows = 0
    original = BoxScreen.show

    def counted(screen: BoxScreen, snapshot: Snapshot, server: Server | None) -> None:
        nonlocal shows
        shows += 1
        original(screen, snapshot, server)

    monkeypatch.setattr(BoxScreen, "show", counted)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 ·"), "the details")
        await pilot.press("2")
        await until(pilot, lambda: "x Stop" in shown(pilot), "the servers")
        before = shows
        link.show(*link.state.servers[:2])
        await until(pilot, lambda: len(app.servers) == 2, "the newer state")
        await pilot.pause()
        assert shows == before
        await pilot.press("1")
        await until(pilot, lambda: shows > before, "the box to catch up")


async def test_the_history_of_the_gpu_under_the_cursor_is_drawn() -> None:
    class WithHistory(FakeLink):
        async def gpu_series(self, uuid: str) -> Series:
            await super().gpu_series(uuid)
            place = [gpu.uuid for gpu in self.state.box.gpus].index(uuid)
            values = tuple(place / 10 for _ in range(60))
            return Series(tuple(NOW - 60 + n for n in range(60)), {"utilization": values})

    link = WithHistory()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "utilization  peak 0%" in shown(pilot), "the first history")
        await pilot.press("down", "down", "down")
        await until(pilot, lambda: "utilization  peak 30%" in shown(pilot), "another history")
        assert "memory  –, last 59 s" in shown(pilot)


async def test_each_state_is_drawn_once_however_fast_they_come() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: drawn(pilot, "GPU 0 ·"), "the details")
        for second in range(1, 301):
            box = replace(link.state.box, at=NOW + second, driver_version=f"999.{second}")
            link.say(SnapshotUpdate(replace(link.state, box=box)))
        await until(pilot, lambda: "driver 999.300" in shown(pilot), "the newest")


async def test_whoever_comes_back_sees_what_the_gpu_did_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.screens.box.HISTORY_EVERY_S", 3600.0)

    class Growing(FakeLink):
        peak = 0.1

        async def gpu_series(self, uuid: str) -> Series:
            await super().gpu_series(uuid)
            return Series(tuple(NOW - 150 + n for n in range(151)), {"utilization": (self.peak,) * 151})

    link = Growing()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "utilization  peak 10%, last 2 min" in shown(pilot), "the first history")
        await pilot.press("2")
        await until(pilot, lambda: "x Stop" in shown(pilot), "the servers")
        link.peak = 1.0
        reads = len(link.asked)
        await pilot.press("1")
        await until(pilot, lambda: ("gpu_series", link.state.box.gpus[0].uuid) in link.asked[reads:], "a reading")
        await until(pilot, lambda: "utilization  peak 100%" in shown(pilot), "what it did")


async def test_what_the_driver_keeps_for_itself_is_not_called_free() -> None:
    snapshot = simulated("2xH200")
    gpus = tuple(
        replace(gpu, memory_used_bytes=0, memory_total_bytes=141 * GIB, memory_free_bytes=140 * GIB, shares=())
        for gpu in snapshot.box.gpus
    )
    app = GpuboxApp(FakeLink(replace(snapshot, box=replace(snapshot.box, gpus=gpus))), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "280.0 GiB free of 282.0 GiB" in shown(pilot), "the heading")
