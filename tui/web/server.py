"""The web server of `gpubox web`: the gate before everything, the page, and a process for each tab.

textual-serve brings the terminal of the page and the packets between server and app; its own server lets anybody in,
runs a shell, and loads a font from elsewhere, so routes and page are ours.
"""

from __future__ import annotations

import asyncio
import html
import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import textual_serve
from aiohttp import WSCloseCode, WSMsgType, web
from textual_serve.download_manager import DownloadManager

from tui.web.gate import Gate, TooManyTriesError
from tui.web.tab import Tab

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATIC = Path(textual_serve.__file__).parent / "static"
HEARTBEAT_S = 15.0
CLOSING_S = 1.0
"""So long a browser may take to say goodbye, too."""

MOST_COLUMNS, MOST_ROWS = 1000, 500
NEW_LINK = "press Enter in the terminal where `gpubox web` runs, and open the link that it prints"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; font-src 'self'; img-src 'self' data:; "
    "connect-src 'self' ws://{host} wss://{host}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class WebServer:
    """Routes, and the tabs that are open; `arguments` are those of each tab's app."""

    def __init__(self, gate: Gate, arguments: Sequence[str], *, title: str, cookie_name: str) -> None:
        self._gate = gate
        self._arguments = arguments
        self._title = title
        self._cookie_name = cookie_name
        self._downloads = DownloadManager()
        self._tabs: set[Tab] = set()
        self._is_closing = False

    def application(self) -> web.Application:
        """Return what aiohttp is to run."""
        app = web.Application(middlewares=[self._guard])
        # HEAD is left out: a preview of a link must not use it up.
        app.router.add_get("/enter", self._enter, allow_head=False)
        app.router.add_get("/", self._page, allow_head=False)
        app.router.add_get("/ws", self._socket, allow_head=False)
        app.router.add_get("/download/{key}", self._download, allow_head=False)
        for name, kind in (("page.js", "text/javascript"), ("page.css", "text/css")):
            app.router.add_get(f"/{name}", _own_file(name, kind), allow_head=False)
        app.router.add_static("/static", STATIC)
        app.on_response_prepare.append(_add_headers)
        return app

    async def close(self) -> None:
        """End all tabs' apps, and wait until they have ended."""
        self._is_closing = True
        await asyncio.gather(*(tab.stop() for tab in tuple(self._tabs)))

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._gate.admits_host(request.headers.get("Host")):
            return web.Response(status=403, text="gpubox web is not known by this name\n")
        try:
            if self._is_in(request):
                return web.HTTPSeeOther("/") if request.path == "/enter" else await handler(request)
            if request.path == "/enter":
                return await handler(request)
        except TooManyTriesError as many:
            wait_s = f"{many.wait_s:.0f}"
            return web.Response(status=429, text=f"{many}\n", headers={"Retry-After": wait_s})
        return self._refuse(request)

    def _is_in(self, request: web.Request) -> bool:
        return self._gate.admits(request.cookies.get(self._cookie_name), request.remote or "")

    @staticmethod
    def _refuse(request: web.Request, what: str = "This page needs a link that works once") -> web.Response:
        # From a link on another site the browser withholds the cookie: the page asks once more by itself, as its own.
        is_from_elsewhere = request.path == "/" and request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        again = '<meta http-equiv="refresh" content="0;url=/">' if is_from_elsewhere else ""
        page = f"<!DOCTYPE html><title>gpubox</title>{again}<p>{what}: {NEW_LINK}.</p>\n"
        return web.Response(status=401, text=page, content_type="text/html")

    async def _enter(self, request: web.Request) -> web.Response:
        cookie = self._gate.redeem(request.query.get("token", ""), request.remote or "")
        if cookie is None:
            return self._refuse(request, "This link is wrong, or was used before")
        # The redirect takes the token, dead by now, out of the address bar.
        answer = web.Response(status=303, headers={"Location": "/"})
        answer.set_cookie(self._cookie_name, cookie, httponly=True, samesite="Strict", path="/")
        return answer

    async def _page(self, request: web.Request) -> web.Response:
        page = files("tui.web").joinpath("page.html").read_text().format(title=html.escape(self._title))
        return web.Response(text=page, content_type="text/html")

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not self._gate.admits_origin(request.headers.get("Origin"), request.headers.get("Host")):
            return web.Response(status=403, text="only the page of this very server may open its screen\n")
        if self._is_closing:
            return web.Response(status=503, text="gpubox web is ending\n")
        websocket = web.WebSocketResponse(heartbeat=HEARTBEAT_S, timeout=CLOSING_S)
        await websocket.prepare(request)
        tab = Tab(self._arguments, websocket, self._downloads)
        self._tabs.add(tab)
        code = WSCloseCode.OK
        try:
            await tab.start(*_size(request.query.get("width"), request.query.get("height")))
            await _listen(websocket, tab, partial(self._gate.keep, request.cookies.get(self._cookie_name, "")))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            code = WSCloseCode.UNSUPPORTED_DATA
        finally:
            await tab.stop()
            self._tabs.discard(tab)
            await websocket.close(code=code)
        return websocket

    async def _download(self, request: web.Request) -> web.StreamResponse:
        key = request.match_info["key"]
        try:
            about = await self._downloads.get_download_metadata(key)
        except KeyError:
            raise web.HTTPNotFound from None
        # Always a file to keep, never a page: it would have this server's rights.
        answer = web.StreamResponse(
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(about.file_name, safe='')}",
            }
        )
        await answer.prepare(request)
        async for chunk in self._downloads.download(key):
            await answer.write(chunk)
        await answer.write_eof()
        return answer


async def _listen(websocket: web.WebSocketResponse, tab: Tab, keep: Callable[[], object]) -> None:
    """Pass on what the browser sends until its tab is gone; raises ValueError and its like for what is no message.

    `keep` notes each time that whoever opened the tab is still there.
    """
    async for message in websocket:
        keep()
        if message.type is not WSMsgType.TEXT:
            continue
        kind, *rest = json.loads(message.data)
        match kind:
            case "stdin":
                await tab.send_bytes(rest[0].encode("utf-8", "replace"))
            case "resize":
                await tab.set_terminal_size(*_size(rest[0]["width"], rest[0]["height"]))
            case "ping":
                await websocket.send_json(["pong", rest[0]])
            case "focus":
                await tab.focus()
            case "blur":
                await tab.blur()


def _size(width: Any, height: Any) -> tuple[int, int]:
    """Return a terminal's size in cells, within reason; what is no number is 80 × 24."""
    try:
        columns, rows = int(width), int(height)
    except (TypeError, ValueError):
        return 80, 24
    return min(max(columns, 1), MOST_COLUMNS), min(max(rows, 1), MOST_ROWS)


def _own_file(name: str, kind: str) -> Handler:
    async def send(request: web.Request) -> web.Response:
        return web.Response(text=files("tui.web").joinpath(name).read_text(), content_type=kind)

    return send


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers["Content-Security-Policy"] = POLICY.format(host=request.host)
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers["Cache-Control"] = "no-store"
