"""What a tab does beyond its picture: it refuses where it only watches, copies, and hands files to the browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp

from tests.web.conftest import PATIENCE_S, Web, keys
from tests.web.test_socket import SIMULATED, shows, tab, visitor

OpenWeb = Callable[..., Web]


async def said(socket: aiohttp.ClientWebSocketResponse) -> list[str]:
    """Return the next thing that a tab says to its page, apart from what it draws."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            message = await socket.receive()
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
            if message.type is aiohttp.WSMsgType.TEXT:
                told: list[str] = json.loads(message.data)
                return told


async def test_a_tab_that_only_watches_refuses_what_changes_something(open_web: OpenWeb) -> None:
    web = open_web("--readonly", *SIMULATED)
    async with visitor(web.link()) as session, tab(session, web) as socket:
        await shows(socket, "READ-ONLY")
        await socket.send_str(keys("2"))
        await shows(socket, "Profiles")
        await socket.send_str(keys("x"))
        await shows(socket, "it does not stop")
    assert web.end() == 0


async def test_a_line_is_copied_to_the_browsers_clipboard(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    async with visitor(web.link()) as session, tab(session, web) as socket:
        await shows(socket, "SIMULATED")
        await socket.send_str(keys("2"))
        await shows(socket, "Profiles")
        await socket.send_str(keys("u"))
        await shows(socket, "launch line")
        await socket.send_str(keys("c"))
        await shows(socket, "\x1b]52;c;")
    assert web.end() == 0


async def test_a_picture_of_the_screen_is_a_download_for_who_is_in(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    async with visitor(web.link()) as session, tab(session, web) as socket:
        await shows(socket, "SIMULATED")
        await socket.send_str(keys("\x10"))
        await shows(socket, "earch for")
        await socket.send_str(keys("screenshot"))
        await shows(socket, "SVG ")
        await socket.send_str(keys("\r"))
        kind, key = await said(socket)
        assert kind == "deliver_file_start"
        async with visitor() as stranger, stranger.get(f"{web.base}/download/{key}") as answer:
            assert answer.status == 401
        async with session.get(f"{web.base}/download/{key}") as answer:
            assert answer.headers["Content-Disposition"].startswith("attachment;")
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert (await answer.text()).startswith("<svg")
        async with session.get(f"{web.base}/download/{key}x") as answer:
            assert answer.status == 404
    assert web.end() == 0
