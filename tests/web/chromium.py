"""A headless Chromium, driven over its DevTools protocol; the terminal's text is read from xterm.js itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PATIENCE_S = 30.0
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CATCH_TERMINAL = """
Object.defineProperty(Object.prototype, 'terminal', {configurable: true, set(value) {
  if (value && value.loadAddon) window.caught = value;
  Object.defineProperty(this, 'terminal', {value, writable: true, configurable: true, enumerable: true});
}});
"""
READ_SCREEN = """
(() => { const t = window.caught; if (!t || !t.element) return '';
  const b = t.buffer.active, lines = [];
  for (let i = 0; i < b.length; i++) lines.push(b.getLine(i).translateToString(true));
  return lines.join('\\n'); })()
"""
NAMED = {
    "f2": ("F2", 113, ""),
    "enter": ("Enter", 13, "\r"),
    "escape": ("Escape", 27, ""),
    "down": ("ArrowDown", 40, ""),
}


class Page:
    """One tab of the browser."""

    def __init__(self, devtools: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._devtools = devtools
        self._session = session
        self._number = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, "sessionId": self._session}
        return await call(self._devtools, message)

    async def go(self, url: str) -> None:
        await self.ask("Page.addScriptToEvaluateOnNewDocument", source=CATCH_TERMINAL)
        await self.ask("Page.navigate", url=url)

    async def evaluate(self, code: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=code, returnByValue=True)
        return answer.get("result", {}).get("value")

    async def press(self, *keys: str) -> None:
        for key in keys:
            name, code, text = NAMED.get(key, (key, ord(key.upper()[0]), key))
            about = {"key": name, "windowsVirtualKeyCode": code}
            await self.ask("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
            await self.ask("Input.dispatchKeyEvent", type="keyUp", **about)

    async def until(self, *texts: str, code: str = READ_SCREEN) -> str:
        """Return what is on the screen once all texts are."""
        deadline = time.monotonic() + PATIENCE_S
        shown = ""
        while time.monotonic() < deadline:
            shown = str(await self.evaluate(code))
            if all(text in shown for text in texts):
                return shown
            await asyncio.sleep(0.05)
        raise AssertionError(f"{texts} never came:\n{shown}")

    async def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.ask("Page.captureScreenshot"))["data"]))


async def call(devtools: aiohttp.ClientWebSocketResponse, message: dict[str, Any]) -> dict[str, Any]:
    await devtools.send_json(message)
    while True:
        answer = json.loads((await devtools.receive(PATIENCE_S)).data)
        if answer.get("id") == message["id"] and answer.get("sessionId") == message.get("sessionId"):
            assert "error" not in answer, answer
            result: dict[str, Any] = answer["result"]
            return result


class Chromium:
    """The browser; its tabs share cookies."""

    def __init__(self, devtools: aiohttp.ClientWebSocketResponse) -> None:
        self._devtools = devtools

    async def page(self) -> Page:
        made = await call(self._devtools, {"id": 0, "method": "Target.createTarget", "params": {"url": "about:blank"}})
        about = {"targetId": made["targetId"], "flatten": True}
        attached = await call(self._devtools, {"id": 0, "method": "Target.attachToTarget", "params": about})
        page = Page(self._devtools, attached["sessionId"])
        await page.ask("Page.enable")
        return page


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Chromium]:
    assert BROWSER is not None
    profile = folder / "chromium"
    process = await asyncio.create_subprocess_exec(
        *(BROWSER, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--remote-debugging-port=0"),
        *("--no-first-run", "--window-size=1200,800", f"--user-data-dir={profile}", "about:blank"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"HOME": str(folder)},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (line := (await process.stderr.readline()).decode()).startswith("DevTools listening on "):
                assert line, "the browser ended"
        drain = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(line.split()[-1], max_msg_size=0) as devtools,
        ):
            yield Chromium(devtools)
        drain.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
