"""Every sheet says its own keys below, whole ones only; one that is left before it stands harms nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.screen import ModalScreen, Screen

from backends.settings import Settings
from backends.snapshots import Owner
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.screens.confirm import ConfirmScreen
from tui.screens.end_foreign import EndForeignScreen
from tui.screens.events import EventsScreen
from tui.screens.explain import ExplainScreen
from tui.screens.help import HelpScreen, keys_of
from tui.screens.profile_choice import Answer, ChoiceScreen
from tui.screens.profile_diff import Difference, DiffScreen
from tui.screens.profile_import import ImportScreen
from tui.screens.profile_name import NameScreen
from tui.screens.use import UseLine, UseScreen

FOREIGN = [one for gpu in simulated().box.gpus for one in gpu.processes if one.owner is Owner.FOREIGN]  # type: ignore[union-attr]

SHEETS: dict[str, tuple[Callable[[Screen[Any]], ModalScreen[Any]], tuple[str, ...]]] = {
    "confirm": (lambda _: ConfirmScreen("Stop it?", "This kills it.", "Stop"), ("y Yes", "n No")),
    "foreign": (lambda _: EndForeignScreen("End one?", FOREIGN), ("esc Leave it",)),
    "events": (lambda _: EventsScreen(), ("f One server, or all", "esc Close")),
    "explain": (lambda _: ExplainScreen(("ttft", "itl")), ("↓ Next", "esc Close")),
    "help": (lambda below: HelpScreen(keys_of(below, "Box")), ("a All keys", "esc Close")),
    "choice": (lambda _: ChoiceScreen("Which?", "One of them.", [Answer("a", "a", "that")]), ("esc Back",)),
    "diff": (lambda _: DiffScreen("Differences", [Difference("a → b", "")]), ("esc Leave",)),
    "import": (lambda _: ImportScreen([]), ("esc Leave",)),
    "name": (lambda _: NameScreen("New", "a", [], choose=True), ("esc Leave",)),
    "use": (lambda _: UseScreen("a", (UseLine("c", "curl", "asks", "curl x"),)), ("c curl", "esc Leave")),
}


def last_line(app: GpuboxApp) -> str:
    strips = app.screen._compositor.render_strips()
    return strips[app.size.height - 1].text if len(strips) >= app.size.height else ""


@pytest.mark.parametrize("name", SHEETS)
async def test_a_sheet_says_its_keys_where_those_of_the_screen_stood(name: str) -> None:
    make, hints = SHEETS[name]
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "q Quit" in last_line(app), "the screen's keys")
        app.push_screen(make(app.screen))
        await until(pilot, lambda: all(hint in last_line(app) for hint in hints), f"{hints} in {last_line(app)}")
        assert "q Quit" not in last_line(app), "keys of the screen below, which do nothing here"


@pytest.mark.parametrize("name", SHEETS)
async def test_a_sheet_that_is_left_before_it_has_parts_harms_nobody(name: str) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "q Quit" in last_line(app), "the screen")
        below = app.screen
        sheet = SHEETS[name][0](below)
        app.push_screen(sheet)
        app.pop_screen()
        await until(pilot, lambda: app.screen is below and not sheet.is_attached, "its end")
        await pilot.pause()
        assert app.is_running


async def test_a_question_names_the_keys_as_they_are_mapped() -> None:
    settings = Settings(keys={"confirm.yes": ("j",)})
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=settings)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(ConfirmScreen("Stop it?", "This kills it.", "Stop"))
        await until(pilot, lambda: "Stop (j)" in shown(pilot) and "j Yes" in last_line(app), "its own key")


@pytest.mark.parametrize("width", [40, 50, 58, 66, 80])
async def test_hints_are_left_out_whole_and_help_stays(width: int) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(width, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "x Stop" in last_line(app), "the keys")
        hints = last_line(app).rstrip().removesuffix("▏^p Palette").split("  ")
        whole = {"x Stop", "r Restart", "l Logs", "c Chat", "u Use", "? Help", "q Quit"}
        assert {hint.strip() for hint in hints} - {""} <= whole
        assert "? Help" in last_line(app)
        assert last_line(app).rstrip().endswith("^p Palette")
        await pilot.resize_terminal(120, 24)
        await until(pilot, lambda: "q Quit" in last_line(app), "all of them")


async def test_texts_name_the_keys_as_they_are_mapped() -> None:
    keys = {"server.logs": ("f9",), "mode.servers": ("f12",), "runs.clear": ("f8",), "use.curl": ("k",)}
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW, settings=Settings(keys=keys))
    async with app.run_test(size=(200, 50)) as pilot:
        await pilot.press("f12")
        await until(pilot, lambda: "Log of llama-3.3-70b · F9 opens it" in shown(pilot), "the wall")
        app.push_screen(UseScreen("a", (UseLine("c", "curl", "asks", "curl x"),)))
        await until(pilot, lambda: "k  curl  asks" in shown(pilot), "the line's key")
        await pilot.press("escape", "6")
        await until(pilot, lambda: "Press F12, choose a profile, and start it with Enter" in shown(pilot), "no launch")
