"""Every key does something, every screen says what it is, and the help is read off the bindings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widgets import Input

from backends.simulation import SimulatedKeeper
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import PANELS, GpuboxApp
from tui.screens.help import HelpScreen


def shows(pilot: Pilot[None], text: str) -> bool:
    return text in shown(pilot)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 50)])
async def test_digits_and_f_keys_show_the_modes_and_each_says_simulated(size: tuple[int, int]) -> None:
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for number, (mode, (title, _)) in enumerate(PANELS.items(), start=1):
            for key in (str(number), f"f{number}"):
                await pilot.press("f1" if number > 1 else "f2", key)
                await pilot.pause()
                assert app.current_mode == mode
                first = shown(pilot).splitlines()[0]
                assert f" {number} {title} " in first
                assert "SIMULATED" in first


async def test_a_real_box_does_not_say_simulated() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "llama-3.3-70b ready" in shown(pilot), "the selected server")
        assert "SIMULATED" not in shown(pilot)


async def test_brackets_select_servers_around_the_end() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.selected is not None, "a selection")
        names = [server.name for server in app.servers]
        assert app.selected == names[0]
        for key, expected in (("]", 1), ("]", 2), ("[", 1), ("[", 0), ("[", len(names) - 1), ("]", 0)):
            await pilot.press("left_square_bracket" if key == "[" else "right_square_bracket")
            assert app.selected == names[expected]


async def test_a_click_on_a_tab_shows_its_mode() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "2 Servers" in shown(pilot), "the tabs")
        await pilot.click(offset=(shown(pilot).splitlines()[0].index("Servers"), 0))
        assert app.current_mode == "servers"


async def test_help_lists_what_works_on_the_screen_it_was_asked_on(store: Store) -> None:
    app = GpuboxApp(FakeLink(), store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        box = shown(pilot)
        assert "Leave; servers keep running" in box
        assert "Drain and stop it" not in box
        await pilot.press("escape", "2", "question_mark")
        servers = shown(pilot)
        assert "Drain and stop it" in servers
        assert "Copy its curl" in servers
        await pilot.press("escape")
        await until(pilot, lambda: "pair" in shown(pilot), "the profiles")
        await pilot.press("tab", "question_mark")
        profiles = shown(pilot)
        assert "Choose GPUs, port, settings" in profiles
        assert "Drain and stop it" not in profiles


async def test_the_footer_offers_only_what_the_server_can_do() -> None:
    link = FakeLink()
    ready, failed = link.state.servers[0], link.state.servers[3]
    link.state = replace(link.state, servers=(ready, failed))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "x Stop" in shown(pilot).splitlines()[-1], "a live server's keys")
        assert "d Forget" not in shown(pilot).splitlines()[-1]
        await pilot.press("down")
        await until(pilot, lambda: "d Forget" in shown(pilot).splitlines()[-1], "an ended server's keys")
        assert "x Stop" not in shown(pilot).splitlines()[-1]


async def test_quitting_says_what_keeps_running() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        assert app.farewell() == "3 servers keep running · gpubox status"
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running or app._exit, "the end")


async def test_quitting_a_simulation_promises_nothing() -> None:
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), simulated=True, clock=lambda: NOW)
    async with app.run_test() as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        assert app.farewell() is None


async def test_the_palette_knows_servers_and_profiles_and_keeps_textuals_commands(store: Store) -> None:
    link = FakeLink()
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for typed, expected in (
            ("go metr", "Go to Metrics"),
            ("stop mis", "Stop mistral-7b"),
            ("forget", "Forget qwen2.5-14b"),
            ("start sing", "Start single …"),
            ("theme", "Theme"),
        ):
            await pilot.press("ctrl+p")
            assert isinstance(app.screen, CommandPalette)
            app.screen.query_one(Input).value = typed
            await until(pilot, partial(shows, pilot, expected), f"{expected} in the palette")
            await pilot.press("escape")
        assert "wrong" not in shown(pilot)


async def test_a_palette_command_acts_on_the_server_it_names() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(120, 50)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        await pilot.press("ctrl+p")
        app.screen.query_one(Input).value = "restart mistral"
        await until(pilot, lambda: "Restart mistral-7b" in shown(pilot), "the command")
        await pilot.press("enter")
        await until(pilot, lambda: link.requests() != [], "a request")
        assert link.requests() == [("restart", "mistral-7b")]


async def test_another_theme_than_ours_works_on_every_screen() -> None:
    app = GpuboxApp(FakeLink(simulated()), clock=lambda: NOW)
    async with app.run_test() as pilot:
        for theme in ("gpubox-day", "textual-light", "dracula"):
            app.theme = theme
            for key in ("f1", "f2", "f3", "f4", "f5"):
                await pilot.press(key)
                await pilot.pause()
                assert " gpubox " in shown(pilot).splitlines()[0]
