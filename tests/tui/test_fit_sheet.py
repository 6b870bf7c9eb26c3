"""The launch sheet tells whether what it would start fits: for the GPUs that are ticked and the settings as typed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from backends.fit import choices, estimate
from backends.snapshots import BoxUpdate, Gpu, Missing
from profiles.store import Place, Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tests.tui.test_launch_sheet import row
from tests.unit.fit_models import QWEN_7B, write_model
from tui.app import GpuboxApp
from tui.screens.launch import LaunchScreen
from tui.widgets.fit_bar import FitBar

GIB = 1 << 30


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One profile, whose model is on the machine: 12.2 GiB of weights."""
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "home"))
    write_model(tmp_path / "m7b", QWEN_7B)
    folder = tmp_path / "profiles"
    folder.mkdir(exist_ok=True)
    (folder / "m7b.toml").write_text(
        f'model = "{tmp_path / "m7b"}"\n[args]\nmax_model_len = 8192\ngpu_memory_utilization = 0.4\n'
    )
    return Store([Place("folder", folder)])


async def open_sheet(pilot: Pilot[None]) -> None:
    await pilot.press("2")
    await until(pilot, lambda: "m7b" in shown(pilot), "the profile")
    await pilot.press("tab", "enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, LaunchScreen), "the sheet")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_parts_and_verdict_are_shown_and_follow_the_settings(models: Store, size: tuple[int, int]) -> None:
    app = GpuboxApp(FakeLink(), store=models, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await open_sheet(pilot)
        await until(pilot, lambda: "✓ fits: 792," in shown(pilot), "the verdict")
        assert "weights 12.2" in shown(pilot)
        assert "KV cache 42.3" in shown(pilot)
        assert "overhead 2.7" in shown(pilot)
        assert "free 82." in shown(pilot)
        app.screen.query_one("#sets", Input).value = "gpu_memory_utilization=0.1 max_model_len=32768"
        await until(pilot, lambda: "✗ does not fit: room for" in shown(pilot), "the refusal")
        await until(pilot, lambda: "→ gpu_memory_utilization=0.15" in shown(pilot), "the smallest change")
        assert "Port" in shown(pilot)
        assert "$ vllm serve" in shown(pilot)


async def test_the_parts_differ_without_colours_too_and_the_verdict_stands_above_them(models: Store) -> None:
    app = GpuboxApp(FakeLink(), store=models, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot)
        await until(pilot, lambda: "✓ fits: 792," in shown(pilot), "the verdict")
        lines = shown(pilot).splitlines()
        verdict = next(number for number, line in enumerate(lines) if "✓ fits" in line)
        bar, legend = (line.strip("│ ") for line in lines[verdict + 1 : verdict + 3])
        assert list(dict.fromkeys(bar)) == ["█", "▓", "▒", "·"]
        assert all(part in legend for part in ("█ weights", "▓ KV cache", "▒ overhead", "· free")), legend


async def test_a_profiles_verdict_is_seen_on_a_small_terminal(models: Store) -> None:
    app = GpuboxApp(FakeLink(), store=models, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("7")
        await until(pilot, lambda: "✓ fits: 792," in shown(pilot), "the verdict")


async def test_a_ticked_gpu_counts_with_what_is_free_on_it(models: Store) -> None:
    link = FakeLink()
    box = link.state.box
    crowded = tuple(
        replace(gpu, memory_used_bytes=110 * GIB, memory_free_bytes=29 * GIB) if gpu.index == 5 else gpu
        for gpu in box.gpus
    )
    link.state = replace(link.state, box=replace(box, gpus=crowded))
    app = GpuboxApp(link, store=models, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await open_sheet(pilot)
        await until(pilot, lambda: "✓ fits" in shown(pilot), "the verdict of auto")
        await pilot.press("down", "space")
        assert "[x]" in row(pilot, 5)
        await until(pilot, lambda: "29.0 GiB can be had on GPU 5" in shown(pilot), "the verdict of GPU 5")
        await pilot.press("down", "space")
        await until(pilot, lambda: "tick 1 GPU to see whether it fits" in shown(pilot), "too many")
        await pilot.press("c")
        await until(pilot, lambda: "on the CPU" in shown(pilot) and "overhead 0.6" in shown(pilot), "the CPU's")


async def test_it_is_reckoned_anew_only_when_something_changed(models: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    truly = estimate.estimate

    def counted(*given: object, **more: object) -> object:
        asked.append(given)
        assert threading.current_thread() is not threading.main_thread()
        return truly(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(choices, "estimate", counted)
    link = FakeLink()
    app = GpuboxApp(link, store=models, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_sheet(pilot)
        await until(pilot, lambda: "✓ fits" in shown(pilot), "the verdict")
        before = len(asked)
        box = link.state.box
        nearly = tuple(_with_free(gpu, 1 << 20) for gpu in box.gpus)
        link.say(BoxUpdate(replace(box, at=box.at + 1, gpus=nearly)))
        await pilot.pause()
        link.say(BoxUpdate(replace(box, at=box.at + 2, gpus=tuple(_with_free(gpu, 130 * GIB) for gpu in box.gpus))))
        await until(pilot, lambda: "✗ does not fit" in shown(pilot), "the new verdict")
        assert len(asked) == before + 1


async def test_a_model_that_is_not_here_is_told(store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    app = GpuboxApp(FakeLink(simulated()), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "single" in shown(pilot), "the profiles")
        await pilot.press("tab", "down", "down", "enter")
        await until(pilot, lambda: "? unknown: Qwen/Qwen2.5-7B is not on this machine" in shown(pilot), "the reason")
        bar = app.screen.query_one(FitBar)
        told = " ".join(" ".join(bar.render_line(y).text.split()) for y in range(bar.size.height))
        assert "…" not in told, "the verdict is whole"
        assert "hf download Qwen/Qwen2.5-7B" in told
        assert app.screen.query_one("#run").region.bottom < app.screen.query_one("#sheet").region.bottom


def _with_free(gpu: Gpu, less_bytes: int) -> Gpu:
    free, used = gpu.memory_free_bytes, gpu.memory_used_bytes
    assert not isinstance(free, Missing)
    assert not isinstance(used, Missing)
    taken = min(free, less_bytes)
    return replace(gpu, memory_free_bytes=free - taken, memory_used_bytes=used + taken)
