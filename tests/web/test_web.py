"""The whole way in a real browser: start a server by keys, chat with it, see it in a second tab, stop it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.keeper.conftest import Box, fake_profile
from tests.web.chromium import BROWSER, Page, chromium
from tests.web.conftest import Web

pytestmark = [pytest.mark.web, pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome in PATH")]


async def test_start_chat_and_stop_in_a_browser(open_web: Callable[..., Web], web_box: Box, tmp_path: Path) -> None:
    # The first of its list, so that the keys lead to it.
    engine = Path(__file__).with_name("fake_vllm.py")
    web_box.keep_profile(fake_profile("aaa") | {"python": str(engine)})
    web = open_web()
    async with chromium(tmp_path) as browser:
        first, second = await browser.page(), await browser.page()
        await first.go(web.link())
        await first.until("Box", "Servers")
        assert await first.evaluate("location.href") == f"{web.base}/"
        await start(first)
        await second.go(web.base)
        await second.until("Box", "Servers")
        await second.press("2")
        await second.until("aaa", "ready")
        await first.press("4")
        await first.until("Enter sends")
        await first.press(*"hello", "enter")
        await first.until("You asked: hello")
        await second.press("x")
        await first.press("f2")
        await first.until("aaa", "stopped")
    assert web.end() == 0


async def start(page: Page) -> None:
    await page.press("2")
    await page.until("No server yet", "aaa")
    await page.press("s")
    await page.until("ready", "endpoint")
