"""A keeper for benchmarks/stall.py: it answers a screen as the real one does, with servers that there are not."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from backends.keeper.events import Hub
from backends.metrics.series import gpu_figures, server_figures
from backends.orphans import Orphan
from backends.simulation import SimulatedKeeper
from backends.snapshots import (
    BoxUpdate,
    Connection,
    Event,
    Gpu,
    Metrics,
    Series,
    Server,
    ServerUpdate,
    SnapshotUpdate,
    Update,
    dump,
)

HOUR_S = 3600
"""Each server and GPU has an hour of figures, one a second."""


class StandIn:
    """A box of `gpus` GPUs and servers made of a simulated one's; all figures change each second."""

    def __init__(
        self, path: Path, gpus: int, servers: int, log_path: str | None = None, connection: Connection | None = None
    ) -> None:
        simulated = SimulatedKeeper(f"{gpus}xH200").snapshot()
        model = next(one for one in simulated.servers if isinstance(one.metrics, Metrics))
        self._connection = connection
        self._hub = Hub()
        self._snapshot = replace(
            simulated,
            box=replace(simulated.box, simulated=False),
            servers=tuple(
                replace(
                    model,
                    name=f"server-{number:02}",
                    gpus=(simulated.box.gpus[number % gpus].uuid,),
                    gpu_indices=(number % gpus,),
                    port=8000 + number,
                    log_path=log_path,
                )
                for number in range(servers)
            ),
        )
        self._path = path
        self._listens = threading.Event()
        self._leave: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(20)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._thread.join()

    async def _serve(self) -> None:
        name = "/v1/servers/{name}"
        app = Starlette(
            routes=[
                Route("/v1/events", self._events),
                Route("/v1/history", lambda _: _json(dump((), tuple[Event, ...]))),
                Route("/v1/orphans", lambda _: _json(dump((), tuple[Orphan, ...]))),
                Route(f"{name}/connection", lambda _: _json(dump(self._connection))),
                Route(f"{name}/profile", lambda _: _json(b"{}")),
                Route(f"{name}/series", self._server_series),
                Route("/v1/gpus/{uuid}/series", self._gpu_series),
            ]
        )
        door = socket.socket(socket.AF_UNIX)
        door.bind(str(self._path))
        door.listen(8)
        server = uvicorn.Server(
            uvicorn.Config(
                app, http="h11", log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
            )
        )

        def leave() -> None:
            server.should_exit = True

        self._leave = leave
        self._listens.set()
        moving = asyncio.create_task(self._move())
        await server.serve(sockets=[door])
        moving.cancel()

    async def _move(self) -> None:
        """Change every figure each second, as the real keeper's scrapes and readings do: spread over it."""
        while True:
            servers = []
            pause_s = 1.0 / (len(self._snapshot.servers) + 1)
            for server in self._snapshot.servers:
                moved = _moved_server(server)
                servers.append(moved)
                self._hub.publish(ServerUpdate(moved))
                await asyncio.sleep(pause_s)
            box = replace(self._snapshot.box, at=time.time(), gpus=tuple(map(_moved_gpu, self._snapshot.box.gpus)))
            self._snapshot = replace(self._snapshot, box=box, servers=tuple(servers))
            self._hub.publish(BoxUpdate(box))
            await asyncio.sleep(pause_s)

    async def _events(self, _: Request) -> Response:
        return StreamingResponse(self._lines(), media_type="application/x-ndjson")

    async def _lines(self) -> AsyncIterator[bytes]:
        with self._hub.subscribe() as subscription:
            yield dump(SnapshotUpdate(self._snapshot), Update) + b"\n"
            async for batch in subscription.batches():
                yield b"".join(dump(update, Update) + b"\n" for update in batch)

    async def _server_series(self, request: Request) -> Response:
        server = next(one for one in self._snapshot.servers if one.name == request.path_params["name"])
        return _json(dump(_hour(server_figures(server.metrics).items())))

    async def _gpu_series(self, request: Request) -> Response:
        gpu = next(one for one in self._snapshot.box.gpus if one.uuid == request.path_params["uuid"])
        return _json(dump(_hour(gpu_figures(gpu).items())))


def _hour(figures: Iterable[tuple[str, float | None]]) -> Series:
    now = time.time()
    points: dict[str, tuple[float | None, ...]] = {
        name: tuple((value or 0.0) * random.random() for _ in range(HOUR_S)) for name, value in figures
    }
    return Series(tuple(now - HOUR_S + second for second in range(HOUR_S)), points)


def _moved_server(server: Server) -> Server:
    assert isinstance(server.metrics, Metrics)
    metrics = replace(
        server.metrics,
        at=time.time(),
        kv_cache_usage=random.random(),
        running=random.randrange(60),
        waiting=random.randrange(5),
        generation_tokens_per_s=3000 * random.random(),
        prompt_tokens_per_s=9000 * random.random(),
    )
    return replace(server, metrics=metrics)


def _moved_gpu(gpu: Gpu) -> Gpu:
    return replace(
        gpu,
        utilization=random.random(),
        power_w=700 * random.random(),
        temperature_c=random.randrange(30, 85),
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
