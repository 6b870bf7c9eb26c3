"""Model servers that gpubox only found running: watched and talked to like its own, and never signalled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from itertools import count

from backends import paths
from backends.engines.base import HttpGet, Readiness
from backends.engines.http import EngineHttp
from backends.engines.vllm import VllmEngine
from backends.errors import ConflictError
from backends.gpus.processes import started_at
from backends.keeper.events import Hub
from backends.keeper.foreign_scan import Found, find_servers
from backends.metrics.rates import MetricsTracker
from backends.metrics.scrape import parse
from backends.metrics.series import SeriesStore, server_figures
from backends.snapshots import (
    Box,
    Connection,
    Foreign,
    Metrics,
    Missing,
    ModelKind,
    Server,
    ServerRemoved,
    ServerState,
    ServerUpdate,
)
from backends.starts import Stage

log = logging.getLogger(__name__)

EVERY_S = 3.0
"""A look goes through all processes."""

ASK_S = 1.0
HEALTH_S = 5.0
UNRESPONSIVE_AFTER = 5
WANTED_S = 5.0
"""For so long after a request for a snapshot they are asked as if somebody listened."""

FIRST_ANSWER_S = 2.0
"""How long whoever asks for a snapshot waits for the first answer of a server that was just found."""

ASLEEP = ("weights_offloaded", "discard_all")
WAITING = "waits for an answer"


class Watched:
    """One server that was found: its newest state, and what is remembered to ask it."""

    def __init__(self, found: Found, name: str) -> None:
        self.found = found
        self.asked = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        now = time.time()
        self.server = Server(
            name=name,
            profile="",
            engine="vllm",
            engine_version=None,
            model=found.model,
            served_name=found.served_name,
            kind=ModelKind.UNKNOWN,
            state=ServerState.STARTING,
            state_since=now,
            gpus=(),
            gpu_indices=(),
            host=found.host,
            port=found.port,
            launched_at=started_at(found.start_ticks),
            ready_at=None,
            log_path=None,
            stage=Stage(WAITING, now),
            pid=found.pid,
            has_api_key=found.wants_key,
            why="found running: it was started by hand",
            foreign=Foreign(found.pid, found.start_ticks, found.user, found.command),
        )
        self._tracker = MetricsTracker()
        self._failures = 0
        self._next_health = 0.0
        self._engine = VllmEngine()

    def place(self, found: Found, box: Box) -> None:
        """Note what a newer look tells: the port, and the GPUs on which its processes hold memory."""
        self.found = found
        held = [
            gpu
            for gpu in box.gpus
            if not isinstance(gpu.processes, Missing) and any(one.pid in found.tree for one in gpu.processes)
        ]
        gpus, indices = tuple(gpu.uuid for gpu in held), tuple(gpu.index for gpu in held)
        self.server = replace(self.server, gpus=gpus, gpu_indices=indices, host=found.host, port=found.port)

    async def ask(self, http: HttpGet) -> None:
        """Ask it how it is, once; what it says stands in `server`."""
        try:
            if not self.found.listens:
                self._wait("its port is not open yet")
            else:
                if self.server.state is ServerState.STARTING:
                    await self._meet(http)
                if self.server.state is not ServerState.STARTING:
                    await self._look_after(http)
        finally:
            self.asked.set()

    async def _meet(self, http: HttpGet) -> None:
        try:
            status, body = await http.get("/v1/models")
            if status == 401:
                await self._meet_locked(http)
                return
            model, served_name = _first_model(body, self.server)
            readiness = await self._engine.probe(http, served_name)
        except OSError as problem:
            self._wait(str(problem))
            return
        if readiness.ready or readiness.sleeping:
            self.server = replace(self.server, model=model, served_name=served_name)
            self._begin(readiness)
        else:
            self._wait(readiness.reason)

    async def _meet_locked(self, http: HttpGet) -> None:
        """A server that wants a key tells only its health and its figures."""
        status, _ = await http.get("/health")
        self.server = replace(self.server, has_api_key=True)
        if status == 200:
            self._begin(Readiness(True, "serves"))
        else:
            self._wait(f"/health answers {status}")

    def _begin(self, readiness: Readiness) -> None:
        self.server = replace(
            self.server,
            kind=readiness.kind,
            engine_version=readiness.version,
            max_model_len=readiness.max_model_len,
            stage=None,
        )
        self._become(ServerState.SLEEPING if readiness.sleeping else ServerState.READY)

    def _wait(self, why: str) -> None:
        stage = self.server.stage
        since = stage.since if stage is not None else time.time()
        self.server = replace(self.server, stage=Stage(WAITING, since, detail=why))
        self._become(ServerState.STARTING)

    async def _look_after(self, http: HttpGet) -> None:
        begun, problem = time.monotonic(), ""
        metrics: Metrics | Missing
        try:
            if begun >= self._next_health:
                self._next_health = begun + HEALTH_S
                status, _ = await http.get("/health")
                if status != 200:
                    raise OSError(f"/health answers {status}")
            _, body = await http.get("/metrics")
            metrics = self._tracker.update(time.time(), parse(body))
            self._failures = 0
        except OSError as error:
            self._failures += 1
            problem = str(error)
            metrics = Missing(problem)
        self.server = replace(self.server, metrics=metrics)
        if self._failures >= UNRESPONSIVE_AFTER:
            self._become(ServerState.UNRESPONSIVE)
        elif not problem:
            asleep = isinstance(metrics, Metrics) and metrics.sleep_state in ASLEEP
            self._become(ServerState.SLEEPING if asleep else ServerState.READY)

    def _become(self, state: ServerState) -> None:
        if self.server.state is state:
            return
        now = time.time()
        # When it got ready is known only of a server that was seen starting.
        seen_starting = self.server.state is ServerState.STARTING and self.asked.is_set()
        ready_at = now if state is ServerState.READY and seen_starting else self.server.ready_at
        self.server = replace(self.server, state=state, state_since=now, ready_at=ready_at)


class ForeignServers:
    """Looks for servers that were started by hand while somebody wants to know; every method runs on one event loop.

    `box` gives the newest reading, `roots` the shims' pids with their servers' names, `own_names` the names that
    servers of ours have.
    """

    def __init__(
        self,
        hub: Hub,
        series: SeriesStore,
        box: Callable[[], Awaitable[Box]],
        roots: Callable[[], Mapping[int, str]],
        own_names: Callable[[], Collection[str]],
    ) -> None:
        self._hub = hub
        self._series = series
        self._box = box
        self._roots = roots
        self._own_names = own_names
        self._watched: dict[tuple[int, int], Watched] = {}
        self._lock = asyncio.Lock()
        self._looked_at = self._wanted_at = -math.inf

    async def run(self) -> None:
        """Look every few seconds while somebody wants to know."""
        while True:
            if self._is_wanted():
                try:
                    await self.look()
                except Exception:
                    log.exception("the look for foreign servers failed")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Find what is there now; begin to follow what is new, drop what is gone."""
        async with self._lock:
            servers = paths.state_dir() / "servers"
            found = await asyncio.to_thread(find_servers, servers, self._roots())
            box = await self._box()
            self._looked_at = time.monotonic()
            there = {(one.pid, one.start_ticks): one for one in found}
            for key in self._watched.keys() - there.keys():
                self._drop(self._watched.pop(key))
            for key, one in there.items():
                watched = self._watched.get(key)
                if watched is not None and watched.server.name in self._own_names():
                    # A server of ours has taken the name since; the broadcast of it replaces this one's.
                    self._drop(self._watched.pop(key), told=False)
                    watched = None
                if watched is None:
                    watched = self._watched[key] = Watched(one, self._free_name(one.port))
                    watched.task = asyncio.create_task(self._follow(watched), name=f"foreign {watched.server.name}")
                before = watched.server
                watched.place(one, box)
                if watched.server != before or not watched.asked.is_set():
                    self._hub.publish(ServerUpdate(watched.server))

    async def snapshots(self) -> tuple[Server, ...]:
        """Return the newest state of each, by name; looks anew where the last look is old."""
        self._wanted_at = time.monotonic()
        if self._wanted_at - self._looked_at > EVERY_S:
            await self.look()
        unasked = [watched for watched in self._watched.values() if not watched.asked.is_set()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWER_S):
                for watched in unasked:
                    await watched.asked.wait()
        return tuple(sorted((watched.server for watched in self._watched.values()), key=lambda server: server.name))

    async def pids(self) -> frozenset[int]:
        """Return the pids of all that belongs to them."""
        await self.snapshots()
        return frozenset(pid for watched in self._watched.values() for pid in watched.found.tree)

    async def connection(self, name: str) -> Connection | None:
        """Return what a client needs to talk to one of them, its key excepted; None where none has that name."""
        server = await self._named(name)
        return Connection(f"{server.address}/v1", server.served_name, server.kind) if server else None

    async def check(self, name: str) -> None:
        """Raise ConflictError where a name is one of theirs: nothing of gpubox stops or restarts it."""
        server = await self._named(name)
        if server is not None and server.foreign is not None:
            raise ConflictError(
                f"{name} was started by hand (pid {server.foreign.pid}, {server.foreign.user}): "
                "gpubox does not touch it",
                f"end it where it was started; gpubox reap {server.foreign.pid} does so after a question",
            )

    async def detach(self) -> None:
        """Stop following all of them."""
        for watched in self._watched.values():
            if watched.task is not None:
                watched.task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watched.task

    def _is_wanted(self) -> bool:
        return self._hub.listeners > 0 or time.monotonic() - self._wanted_at < WANTED_S

    async def _named(self, name: str) -> Server | None:
        if name in self._own_names():
            return None
        return next((server for server in await self.snapshots() if server.name == name), None)

    def _free_name(self, port: int) -> str:
        taken = {*self._own_names(), *(watched.server.name for watched in self._watched.values())}
        names = (f"vllm-{port}" + (f"-{number}" if number > 1 else "") for number in count(1))
        return next(name for name in names if name not in taken)

    def _drop(self, watched: Watched, *, told: bool = True) -> None:
        if watched.task is not None:
            watched.task.cancel()
        if told:
            self._series.forget(f"server {watched.server.name}")
            self._hub.publish(ServerRemoved(watched.server.name))

    async def _follow(self, watched: Watched) -> None:
        """Ask a server once a second while somebody wants to know, and at least once."""
        while True:
            address = watched.server.address
            async with EngineHttp(address) as http:
                while watched.server.address == address:
                    if self._is_wanted() or not watched.asked.is_set():
                        await self._ask(watched, http)
                    await asyncio.sleep(ASK_S)

    async def _ask(self, watched: Watched, http: EngineHttp) -> None:
        before = watched.server
        try:
            await watched.ask(http)
        except Exception:
            log.exception("asking %s failed", before.name)
        if watched.server != before:
            self._hub.publish(ServerUpdate(watched.server))
        if isinstance(watched.server.metrics, Metrics):
            figures = server_figures(watched.server.metrics)
            self._series.append(f"server {before.name}", time.time(), figures)


def _first_model(body: bytes, server: Server) -> tuple[str, str]:
    """Return where the model comes from and the name that requests give, as /v1/models tells them."""
    try:
        card = json.loads(body)["data"][0]
        served_name = str(card["id"])
    except (ValueError, LookupError, TypeError):
        return server.model, server.served_name
    return str(card.get("root") or server.model or served_name), served_name
