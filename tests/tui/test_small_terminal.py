"""A terminal smaller than the usual 80x24: columns stay in line, and figures are whole."""

from __future__ import annotations

import re

import pytest

from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp


async def screen_text(key: str, wanted: str, size: tuple[int, int]) -> list[str]:
    """Return the lines of a screen once it shows what is wanted of it."""
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await pilot.press(key)
        await until(pilot, lambda: wanted in shown(pilot), wanted)
        return shown(pilot).splitlines()


@pytest.mark.parametrize("size", [(60, 15), (66, 20), (72, 24)])
async def test_the_servers_states_stand_below_their_heading(size: tuple[int, int]) -> None:
    lines = await screen_text("2", "● ready", size)
    heading = next(line for line in lines if "Server " in line and "State" in line)
    rows = [line for line in lines if re.search(r"[●◐✗] (ready|failed|weights|compile)", line)]
    assert len(rows) >= 3
    assert {re.sub("[●◐✗]", "●", row).index("●") for row in rows} == {heading.index("State")}


@pytest.mark.parametrize("size", [(60, 15), (80, 24), (200, 50)])
async def test_a_notice_covers_neither_the_bar_nor_the_line_that_is_typed_in_nor_the_keys(
    size: tuple[int, int],
) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.press("4")
        await until(pilot, lambda: app.focused is not None and app.current_mode == "chat", "the chat")
        app.notify("ready in 2:02", title="tp2")
        await until(pilot, lambda: "ready in 2:02" in shown(pilot), "the notice")
        line = next(number for number, text in enumerate(shown(pilot).splitlines()) if "ready in 2:02" in text)
        assert 1 <= line <= 4
        assert "4 Chat" in shown(pilot).splitlines()[0]
        (toast,) = app.screen.query("Toast")
        assert app.focused is not None
        assert not toast.region.overlaps(app.focused.region)
        assert toast.region.right >= size[0] - 2


@pytest.mark.parametrize("size", [(60, 15), (66, 20)])
async def test_a_gpus_utilization_is_whole(size: tuple[int, int]) -> None:
    lines = await screen_text("1", "126.2/139.8", size)
    rows = [line for line in lines if "/139.8" in line]
    assert rows
    assert all(re.search(r" \d+% ", row) for row in rows), rows
