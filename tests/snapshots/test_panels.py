"""Pictures of every panel, at the smallest size that is promised and at a comfortable one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea
from textual.worker import WorkerCancelled

from tui.app import GpuboxApp

Compare = Callable[..., bool]
MakeApp = Callable[..., GpuboxApp]
SIZES = [(80, 24), (120, 40)]
STILL = 5
"""How many times in a row a screen must look the same to count as finished."""
MIXED = "5xH200,2xRTX4090,1xL40S,8xH100"


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    chosen: tuple[int, int] = request.param
    return chosen


async def settle(pilot: Pilot[None], *keys: str) -> None:
    """Press keys, each once the one before has had its effect, and wait until everything is drawn."""
    app = pilot.app
    assert isinstance(app, GpuboxApp)
    while app.snapshot is None:
        await pilot.pause(0.01)
    await quiet(pilot)
    for key in keys:
        await pilot.press(key)
        await quiet(pilot)
    for field in (*app.screen.query(Input), *app.screen.query(TextArea)):
        field.cursor_blink = False
    await quiet(pilot)


async def quiet(pilot: Pilot[None]) -> None:
    """Wait for the workers that end by themselves, all but the keeper's, until the screen stays as it is."""
    same, before = 0, ""
    while same < STILL:
        await pilot.pause()
        # What edits profiles waits for what a person says to its dialogs.
        asks = pilot.app.screen.is_modal and ("editing", "saving")
        running = [worker for worker in pilot.app.workers if worker.name != "keeper" and not worker.is_finished]
        short = [worker for worker in running if not asks or worker.group not in asks]
        if short:
            with contextlib.suppress(WorkerCancelled):  # one that a newer one of its kind has replaced
                await pilot.app.workers.wait_for_complete(short)
        now = "\n".join(strip.text for strip in pilot.app.screen._compositor.render_strips())
        same, before = (same + 1 if now == before else 0), now


def picture(snap_compare: Compare, app: GpuboxApp, size: tuple[int, int], *keys: str) -> bool:
    return snap_compare(app, terminal_size=size, run_before=partial(_run, keys=keys))


async def _run(pilot: Pilot[None], keys: tuple[str, ...]) -> None:
    await settle(pilot, *keys)


PANELS = {
    "box": (),
    "servers": ("2",),
    "profiles": ("2", "tab"),
    "failed": ("2", "down", "down", "down", "down"),
    "launch": ("2", "tab", "down", "down", "enter", "space", "down", "space"),
    "confirm": ("2", "x"),
    "logs": ("3",),
    "chat": ("4",),
    "metrics": ("5",),
    "help": ("question_mark",),
}


@pytest.mark.parametrize("keys", PANELS.values(), ids=PANELS.keys())
def test_panel(snap_compare: Compare, pictured: MakeApp, size: tuple[int, int], keys: tuple[str, ...]) -> None:
    assert picture(snap_compare, pictured(), size, *keys)


@pytest.mark.parametrize("spec", ["0", "1xRTX4090", MIXED], ids=["none", "one", "sixteen"])
def test_box_of(snap_compare: Compare, pictured: MakeApp, size: tuple[int, int], spec: str) -> None:
    assert picture(snap_compare, pictured(spec), size, "1")


def test_by_day(snap_compare: Compare, pictured: MakeApp) -> None:
    app = pictured()
    app.theme = "gpubox-day"
    assert picture(snap_compare, app, (120, 40), "2")
