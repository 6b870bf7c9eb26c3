"""What the keeper says to a front: the routes of the control socket. `link.py` is their other side."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response

from backends.front.gate import Gate
from backends.front.link import FrontMode

Route = Callable[[BaseRequest], Awaitable[dict[str, Any]]]


class Control:
    """Answers the requests of a front's control socket; who asks there is this user."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._routes: dict[tuple[str, str], Route] = {
            ("GET", "/state"): self._state,
            ("PUT", "/mode"): self._mode,
            ("POST", "/drain"): self._drain,
            ("GET", "/wanted"): self._wanted,
        }

    async def answer(self, request: BaseRequest) -> Response:
        """Do what is asked; an error is `{"error": text}`."""
        self._gate.heard()
        route = self._routes.get((request.method, request.path))
        if route is None:
            return _told({"error": f"there is no {request.method} {request.path}"}, 404)
        try:
            return _told(await route(request))
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            return _told({"error": f"this makes no sense: {problem!r}"}, 400)
        except TimeoutError:
            return _told({"error": "a request that was cut off does not end"}, 500)
        finally:
            self._gate.heard()

    async def _state(self, request: BaseRequest) -> dict[str, Any]:
        return self._gate.state()

    async def _mode(self, request: BaseRequest) -> dict[str, Any]:
        order = await request.json()
        wakes = order.get("wakes")
        self._gate.set_mode(
            FrontMode(order["mode"]), str(order.get("reason", "")), None if wakes is None else bool(wakes)
        )
        return self._gate.state()

    async def _drain(self, request: BaseRequest) -> dict[str, Any]:
        order = await request.json()
        if order["then"] not in ("hold", "asleep"):
            raise ValueError(order["then"])
        return await self._gate.drain(float(order["timeout_s"]), order["then"], str(order.get("reason", "")))

    async def _wanted(self, request: BaseRequest) -> dict[str, Any]:
        return await self._gate.wanted(int(request.query.get("after", "0")))


def _told(what: dict[str, Any], status: int = 200) -> Response:
    return Response(status=status, body=json.dumps(what).encode(), content_type="application/json")
