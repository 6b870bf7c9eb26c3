"""What keeps the screen quick: a footer made anew only for other keys, styles parsed once, few imports at first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from textual.css import parse as parsing
from textual.css import stylesheet
from textual.widgets import Footer

from backends.simulation import SimulatedKeeper
from tests.tui.chat_stage import Chat, chatting, greet
from tui.terminal import TerminalApp


def footer_of(chat: Chat) -> list[object]:
    return list(chat.app.screen.query_one(Footer).children)


async def test_the_footer_stays_until_other_keys_are_offered() -> None:
    async with chatting(greet, size=(120, 40)) as chat:
        await chat.until(lambda: bool(footer_of(chat)), "the footer")
        await chat.pilot.pause()
        before = footer_of(chat)
        for _ in range(3):
            chat.app.screen.refresh_bindings()
            await chat.pilot.pause()
        assert all(one is other for one, other in zip(before, footer_of(chat), strict=True))
        await chat.pilot.press("escape")
        await chat.until(lambda: bool(footer_of(chat)) and footer_of(chat)[0] is not before[0], "other keys")


async def test_a_panel_that_is_opened_has_only_its_own_styles_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = parsing.parse

    def noting(scope: str, css: str, read_from: tuple[str, str], *rest: object, **more: object) -> object:
        parsed.append(Path(read_from[0]).name)
        return parse(scope, css, read_from, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(stylesheet, "parse", noting)
    app = TerminalApp(SimulatedKeeper())
    async with app.run_test() as pilot:
        await pilot.press("3")
        await pilot.pause()
        assert (parsed.count("app.tcss"), parsed.count("box.tcss"), parsed.count("logs.tcss")) == (1, 1, 1)
        app.theme = "textual-light"
        await pilot.pause()
        assert parsed.count("app.tcss") == parsed.count("logs.tcss") == 2, "other colours"


def test_the_first_picture_needs_neither_pydantic_nor_a_client_for_http() -> None:
    slow = ("pydantic", "httpx", "openai", "psutil", "tui.screens.launch")
    code = f"import sys, tui.headless.screen, tui.screens.box; print([one for one in {slow} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
