"""What the figures mean: every figure that a screen names is explained, and the sheet leads through them."""

from __future__ import annotations

from dataclasses import fields

import pytest
from textual.widgets import OptionList, Static

from backends.simulation import SimulatedKeeper
from backends.snapshots import Metrics
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.screens.base import GpuboxScreen
from tui.screens.explain import ExplainScreen

NOW = 1_795_264_500.0


def test_every_figure_of_an_engine_is_explained_in_whole_sentences() -> None:
    assert {field.name for field in fields(Metrics)} - {"at"} <= EXPLANATIONS.keys()
    for one in EXPLANATIONS.values():
        assert one.title
        assert one.what.endswith(".")
        assert one.drives.endswith(".")
        assert len(one.what) + len(one.drives) < 420


@pytest.mark.parametrize("mode", list(GpuboxApp.PANELS))
async def test_what_a_screen_names_is_explained(mode: str) -> None:
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        app.switch_mode(mode)
        await pilot.pause()
        for server in (None, *app.servers):
            if server is not None:
                app.selected = server.name
                await pilot.pause()
            assert isinstance(app.screen, GpuboxScreen)
            assert set(app.screen.explained()) <= EXPLANATIONS.keys()


async def test_the_sheet_begins_with_what_was_asked_and_goes_around() -> None:
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(ExplainScreen(("itl", "ttft", "e2e", "itl")))
        await pilot.pause()

        def told() -> str:
            return str(app.screen.query_one("#told Static", Static).content)

        assert told().startswith(EXPLANATIONS["itl"].title)
        assert app.screen.query_one(OptionList).option_count == 3
        await pilot.press("j")
        await pilot.pause()
        assert EXPLANATIONS["ttft"].drives in told()
        await pilot.press("up", "up")
        await pilot.pause()
        assert told().startswith(EXPLANATIONS["e2e"].title)
        await pilot.press("q")
        await pilot.pause()
        assert not isinstance(app.screen, ExplainScreen)
