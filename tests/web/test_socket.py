"""The server over real sockets: the gate, tabs, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from backends.snapshots import ServerState
from tests.keeper.conftest import Box, fake_profile
from tests.web.conftest import PATIENCE_S, Web, keys, token_of

OpenWeb = Callable[..., Web]
SIMULATED = ("--simulate", "2xH200")


@asynccontextmanager
async def visitor(link: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser of one's own; with a link it is let in."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        if link is not None:
            async with session.get(link) as answer:
                assert answer.status == 200, await answer.text()
        yield session


async def shows(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    """Read what a tab is sent until `text` is in it."""
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        while text.encode() not in seen:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.BINARY, (message, seen[-500:])
            seen += message.data


def tab(session: aiohttp.ClientSession, web: Web, **headers: str) -> Any:
    return session.ws_connect(f"{web.base}/ws?width=100&height=30", headers={"Origin": web.base} | headers)


async def test_a_link_works_once_and_is_exchanged_for_a_cookie(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    link = web.link()
    async with visitor() as session:
        async with session.head(link) as preview:
            assert preview.status in (401, 405)
        async with session.get(link, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/")
            cookie = answer.cookies[f"gpubox_{web.port}"]
            assert cookie["httponly"]
            assert (cookie["samesite"], cookie["path"]) == ("Strict", "/")
            assert cookie.value != token_of(link)
        for path, kind in (("/", "html"), ("/page.js", "javascript"), ("/static/js/textual.js", "javascript")):
            async with session.get(web.base + path) as answer:
                assert answer.status == 200
                assert kind in answer.headers["Content-Type"]
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    async with visitor() as stranger:
        for url in (
            link,
            web.base,
            f"{web.base}/static/js/textual.js",
            f"{web.base}/page.js",
            f"{web.base}/download/x",
        ):
            async with stranger.get(url) as answer:
                assert answer.status == 401, url
                assert "press Enter in the terminal" in await answer.text()
        async with stranger.get(web.base, headers={"Sec-Fetch-Site": "cross-site"}) as answer:
            assert "refresh" in await answer.text()
    async with visitor(web.new_link()):
        pass
    assert web.end() == 0


async def test_a_socket_needs_the_cookie_this_origin_and_this_host(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    async with visitor(web.link()) as session:
        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": f"evil.example:{web.port}"}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await tab(session, web, **headers)
            assert refused.value.status == 403
        async with session.get(web.base, headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        async with visitor() as stranger:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await tab(stranger, web)
            assert refused.value.status == 401
        assert web.tabs() == []
    assert web.end() == 0


async def test_wrong_tries_are_limited(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    link = web.link()
    async with visitor() as session:
        statuses = []
        for _ in range(12):
            async with session.get(f"{web.base}/enter?token=wrong") as answer:
                statuses.append(answer.status)
        assert statuses == [401] * 10 + [429] * 2
        async with session.get(link) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) > 0
    assert web.end() == 0


async def test_each_tab_is_a_process_that_ends_with_its_tab_or_the_server(open_web: OpenWeb) -> None:
    web = open_web("--readonly", *SIMULATED)
    token = token_of(web.link())
    async with visitor(f"{web.base}/enter?token={token}") as session:
        async with tab(session, web) as first, tab(session, web) as second:
            await shows(first, "SIMULATED")
            await shows(second, "SIMULATED")
            one, other = web.tabs()
            for process in (one, other):
                assert "--readonly" in process.cmdline()
                assert token not in str(process.cmdline()) + str(process.environ())
            await first.send_str('["resize", {"width": 60, "height": 20}]')
            await first.send_str("no JSON")
            async with asyncio.timeout(PATIENCE_S):
                while len(web.tabs()) > 1:
                    await asyncio.sleep(0.05)
            await second.send_str(keys("q"))
            async with asyncio.timeout(PATIENCE_S):
                while (await second.receive()).type is aiohttp.WSMsgType.BINARY:
                    pass
        async with tab(session, web) as third:
            await shows(third, "SIMULATED")
            (left,) = web.tabs()
            assert await asyncio.to_thread(web.end, signal.SIGINT) == 0
            _, alive = await asyncio.to_thread(psutil.wait_procs, [left], PATIENCE_S)
            assert alive == []


async def test_a_server_that_is_killed_leaves_no_tab(open_web: OpenWeb) -> None:
    web = open_web(*SIMULATED)
    async with visitor(web.link()) as session, tab(session, web) as socket:
        await shows(socket, "SIMULATED")
        (left,) = web.tabs()
        web.process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, [left], PATIENCE_S)
        assert alive == []


async def test_servers_outlive_it_and_it_warns_where_others_may_listen(open_web: OpenWeb, web_box: Box) -> None:
    web_box.start(fake_profile())
    served = await asyncio.to_thread(web_box.until, ServerState.READY)
    web = open_web()
    async with visitor(web.link()) as session, tab(session, web) as socket:
        await shows(socket, "fake")
        assert await asyncio.to_thread(web.end) == 0
    assert web.process.stderr is not None
    assert "WARNING" not in web.process.stderr.read()
    still = web_box.server()
    assert (still.state, still.pid) == (ServerState.READY, served.pid)
    everywhere = web_box.spawn("web", "--port", "auto", "--host", "0.0.0.0")
    assert everywhere.stderr is not None
    assert "WARNING: nothing is encrypted" in everywhere.stderr.readline()


def test_a_port_in_use_is_one_line(open_web: OpenWeb, web_box: Box) -> None:
    web = open_web(*SIMULATED)
    web.link()
    said = web_box.gpubox("web", "--port", str(web.port), code=1).stderr
    assert said.splitlines()[0] == f"gpubox: cannot listen on 127.0.0.1:{web.port}: Address already in use"
    assert web.end() == 0


def test_a_link_is_not_written_where_others_read(web_box: Box, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        log.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IROTH)
        said = web_box.gpubox("web", "--port", "auto", code=2, stdout=file.fileno()).stderr
    assert "others can read" in said
    assert log.read_text() == ""
