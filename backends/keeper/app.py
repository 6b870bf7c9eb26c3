"""The keeper's routes, over its Unix socket: plain JSON requests, and one event stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from backends.errors import GpuboxError, KeeperError, NoSuchServerError, UsageError
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.foreign import ForeignServers
from backends.keeper.reaping import Reaper
from backends.keeper.servers import Servers
from backends.keeper.switching import Switching
from backends.metrics.series import SeriesStore
from backends.orphans import Orphan
from backends.snapshots import (
    Event,
    KeeperInfo,
    Snapshot,
    SnapshotUpdate,
    StartRequest,
    SwitchRequest,
    Update,
    dump,
    load,
)
from backends.switches import Level, SwitchChoice

LEVELS: dict[str, Level | None] = {"": None, "1": 1, "2": 2}
STATUS = {NoSuchServerError.code: 404, UsageError.code: 400, KeeperError.code: 500}


@dataclass(frozen=True, slots=True)
class ReapRequest:
    """Ask for the end of one very process."""

    pid: int
    start_ticks: int
    foreign: bool = False


class Routes:
    """What the keeper answers; each method is one route of docs/architecture.md."""

    def __init__(
        self,
        servers: Servers,
        box: BoxWatch,
        hub: Hub,
        series: SeriesStore,
        info: KeeperInfo,
        end: Callable[[], None],
        foreign: ForeignServers,
        switching: Switching,
    ) -> None:
        self._servers = servers
        self._switching = switching
        self._foreign = foreign
        self._reaper = Reaper(servers.roots)
        self._box = box
        self._hub = hub
        self._series = series
        self._info = info
        self._end = end

    async def snapshot(self, _: Request) -> Response:
        """All that is known now."""
        return _json(dump(await self._now()))

    async def events(self, _: Request) -> Response:
        """A snapshot, then every change, a line each, until the listener goes."""
        return StreamingResponse(self._lines(), media_type="application/x-ndjson")

    async def start(self, request: Request) -> Response:
        """Start a server."""
        try:
            wanted = load(StartRequest, await request.body())
        except ValidationError as problem:
            raise UsageError(f"this is no start request: {problem.errors()[0]['msg']}") from problem
        return _json(dump(await self._servers.start(wanted)), 201)

    async def stop(self, request: Request) -> Response:
        """Stop a server."""
        await self._foreign.check(request.path_params["name"])
        force = request.query_params.get("force") == "1"
        self._switching.stop_asked(request.path_params["name"])
        return _json(dump(self._servers.stop(request.path_params["name"], force=force)))

    async def switch(self, request: Request) -> Response:
        """Have a server serve instead of those in its way."""
        try:
            wanted = load(SwitchRequest, await request.body())
        except ValidationError as problem:
            raise UsageError(f"this is no request to switch: {problem.errors()[0]['msg']}") from problem
        await self._foreign.check(wanted.name)
        return _json(dump(await self._switching.switch(wanted)), 201)

    async def switch_choices(self, _: Request) -> Response:
        """What a switch to each server would do now."""
        return _json(dump(await self._switching.choices(), tuple[SwitchChoice, ...]))

    async def sleep(self, request: Request) -> Response:
        """Put a server to sleep."""
        name, asked = request.path_params["name"], request.query_params.get("level", "")
        if asked not in LEVELS:
            raise UsageError(f"{asked!r} is no level of sleep", "1 or 2")
        await self._foreign.check(name)
        return _json(dump(await self._servers.sleep(name, LEVELS[asked])))

    async def restart(self, request: Request) -> Response:
        """Restart a server, with the profile in the body where there is one."""
        body = await request.body()
        try:
            profile = json.loads(body) if body else None
        except ValueError as problem:
            raise UsageError(f"this is no profile: {problem}") from problem
        await self._foreign.check(request.path_params["name"])
        return _json(dump(await self._servers.restart(request.path_params["name"], profile)))

    async def forget(self, request: Request) -> Response:
        """Forget a server."""
        await self._foreign.check(request.path_params["name"])
        self._servers.forget(request.path_params["name"])
        return Response(status_code=204)

    async def profile(self, request: Request) -> Response:
        """The profile that a server was started with."""
        await self._foreign.check(request.path_params["name"])
        return JSONResponse(self._servers.profile(request.path_params["name"]))

    async def connection(self, request: Request) -> Response:
        """Tell how to talk to an engine."""
        name = request.path_params["name"]
        return _json(dump(await self._foreign.connection(name) or self._servers.connection(name)))

    async def server_series(self, request: Request) -> Response:
        """The last hour of a server."""
        return _json(dump(self._series.series(f"server {request.path_params['name']}")))

    async def gpu_series(self, request: Request) -> Response:
        """The last hour of a GPU."""
        return _json(dump(self._series.series(f"gpu {request.path_params['uuid']}")))

    async def history(self, _: Request) -> Response:
        """The newest events."""
        return _json(dump(self._hub.history, tuple[Event, ...]))

    async def orphans(self, _: Request) -> Response:
        """What servers have left behind."""
        return _json(dump(await self._box.orphans(), tuple[Orphan, ...]))

    async def reap(self, request: Request) -> Response:
        """End an orphan, or a foreign process that a person has confirmed."""
        try:
            asked = load(ReapRequest, await request.body())
        except ValidationError as problem:
            raise UsageError(f"this is no request to reap: {problem.errors()[0]['msg']}") from problem
        box, known = await self._box.fresh(), await self._foreign.pids()
        reaped = await self._reaper.reap(box, asked.pid, asked.start_ticks, foreign=asked.foreign, known=known)
        self._box.look_now()
        return _json(dump(reaped))

    async def shutdown(self, _: Request) -> Response:
        """End the keeper, not the servers."""
        self._end()
        return Response(status_code=204)

    async def _now(self) -> Snapshot:
        foreign = await self._foreign.snapshots()
        servers = (*self._servers.snapshots(), *foreign)
        return Snapshot(self._info, await self._box.box(), servers, self._switching.running())

    async def _lines(self) -> AsyncIterator[bytes]:
        with self._hub.subscribe() as subscription:
            yield dump(SnapshotUpdate(await self._now()), Update) + b"\n"
            async for batch in subscription.batches():
                yield b"".join(dump(update, Update) + b"\n" for update in batch)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        name = "/v1/servers/{name}"
        return Starlette(
            routes=[
                Route("/v1/snapshot", self.snapshot),
                Route("/v1/events", self.events),
                Route("/v1/history", self.history),
                Route("/v1/orphans", self.orphans),
                Route("/v1/reap", self.reap, methods=["POST"]),
                Route("/v1/shutdown", self.shutdown, methods=["POST"]),
                Route("/v1/switches", self.switch, methods=["POST"]),
                Route("/v1/switches", self.switch_choices),
                Route("/v1/servers", self.start, methods=["POST"]),
                Route(name, self.forget, methods=["DELETE"]),
                Route(f"{name}/stop", self.stop, methods=["POST"]),
                Route(f"{name}/sleep", self.sleep, methods=["POST"]),
                Route(f"{name}/restart", self.restart, methods=["POST"]),
                Route(f"{name}/profile", self.profile),
                Route(f"{name}/connection", self.connection),
                Route(f"{name}/series", self.server_series),
                Route("/v1/gpus/{uuid}/series", self.gpu_series),
            ],
            exception_handlers={GpuboxError: _told, OSError: _told_os, HTTPException: _told_http},
        )


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, GpuboxError)
    return _error(STATUS.get(error.code, 409), error.code, error.message, error.hint)


async def _told_os(_: Request, error: Exception) -> Response:
    return _error(507, KeeperError.code, f"the keeper could not do that: {error}", "")


async def _told_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, KeeperError.code, f"the keeper has no such route: {error.detail}", "")


def _error(status: int, code: str, message: str, hint: str) -> Response:
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
