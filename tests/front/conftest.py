"""Real fronts before a real program in the engine's place."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from backends.front.config import FrontConfig
from backends.front.link import FrontLink, FrontMode
from backends.processes.facts import Identity, identity_of
from tests.keeper.conftest import free_port

ROOT = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("engine.py")
LONG_S = 60.0
KEY = "sk-a-key-that-nobody-may-read"

T = TypeVar("T")


async def until(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + LONG_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.01)
    return found


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        try:
            door.connect(str(path))
        except OSError:
            return False
    return True


class StandIn:
    """The program in the engine's place."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "engine.sock"
        self._record = folder / "record.jsonl"
        self._options = options
        self._forgotten = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> StandIn:
        self.socket.unlink(missing_ok=True)
        command = [
            sys.executable,
            str(ENGINE),
            "--uds",
            str(self.socket),
            "--record",
            str(self._record),
            *self._options,
        ]
        self.process = subprocess.Popen(command)
        return self

    def seen(self, what: str) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            rows = [json.loads(line) for line in self._record.read_text().splitlines() if line.endswith("}")]
            return [row for row in rows[self._forgotten :] if row["what"] == what]
        return []

    def forget(self) -> None:
        """Leave out from now on what was seen until now."""
        with suppress(FileNotFoundError):
            self._forgotten = len(self._record.read_text().splitlines())

    async def tell(self, method: str, path: str) -> None:
        """Ask it directly, as the keeper does."""
        connector = aiohttp.UnixConnector(str(self.socket))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://engine{path}") as answer,
        ):
            assert answer.status == 200

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Front:
    """A front's process; `said` is what it has printed."""

    def __init__(self, folder: Path, config: FrontConfig, environ: dict[str, str]) -> None:
        self.config = config
        self.link = FrontLink(config.control_socket)
        self._log = folder / "front.log"
        path = folder / "config.json"
        config.write(path)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "backends.front", str(path)],
                env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
                cwd="/",
                stdout=log,
                stderr=log,
            )

    @property
    def url(self) -> str:
        return f"http://{self.config.host}:{self.config.port}"

    @property
    def said(self) -> str:
        return self._log.read_text()

    async def begins(self, mode: FrontMode) -> None:
        """Set its first mode, as the keeper does, once it and its engine listen."""
        await until(lambda: listens(self.config.engine_socket), "the engine listens")
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                await self.link.set_mode(mode, wakes=None if mode is FrontMode.ASLEEP else self.config.wakes)
                return
            assert self.process.poll() is None, self.said
            await asyncio.sleep(0.01)

    async def comes_to(self, mode: FrontMode) -> None:
        deadline = time.monotonic() + LONG_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                if (await self.link.state()).mode is mode:
                    return
            assert self.process.poll() is None, self.said
            await asyncio.sleep(0.01)
        raise AssertionError(f"the front never came to {mode}: {self.said}")

    async def has(self, **figures: int) -> None:
        deadline = time.monotonic() + LONG_S
        while True:
            state = await self.link.state()
            if all(getattr(state, name) == value for name, value in figures.items()):
                return
            assert time.monotonic() < deadline, f"{state} never came to {figures}"
            await asyncio.sleep(0.01)

    async def exchange(self, data: bytes) -> bytes:
        """Send raw bytes to the port and return all that comes until the front closes."""
        reader, writer = await asyncio.open_connection(self.config.host, self.config.port)
        try:
            writer.write(data)
            async with asyncio.timeout(LONG_S):
                return await reader.read()
        finally:
            writer.close()

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, LONG_S)


class Stage:
    """Starts engines and fronts, and ends them with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # In the place of the engine's shim, which tells by its end that the engine's tree is gone.
        self.shim = subprocess.Popen(["sleep", "600"])
        self._engines: list[StandIn] = []
        self._fronts: list[Front] = []

    def engine(self, *options: str) -> StandIn:
        return self.adopt(StandIn(self.folder, *options).start())

    def adopt(self, engine: StandIn) -> StandIn:
        """End an engine with the test that was started by it."""
        self._engines.append(engine)
        return engine

    def front(self, engine: StandIn, environ: dict[str, str] | None = None, **changes: Any) -> Front:
        number = len(self._fronts)
        folder = self.folder / f"front{number}"
        folder.mkdir()
        config = FrontConfig("bob", "127.0.0.1", free_port(), engine.socket, folder / "c.sock", self._identity())
        front = Front(folder, replace(config, **changes), environ or {})
        self._fronts.append(front)
        return front

    def _identity(self) -> Identity:
        found = identity_of(self.shim.pid)
        assert found is not None
        return found

    async def pair(self, *options: str, environ: dict[str, str] | None = None, **changes: Any) -> tuple[StandIn, Front]:
        """Return an engine, and a front that lets requests pass to it."""
        engine = self.engine(*options)
        front = self.front(engine, environ, **changes)
        await front.begins(FrontMode.ASLEEP if "--asleep" in options else FrontMode.PASS)
        return engine, front

    def close(self) -> None:
        for front in self._fronts:
            front.process.kill()
            front.process.wait()
        for engine in self._engines:
            engine.kill()
        self.shim.kill()
        self.shim.wait()


class Shared:
    """One engine and one front for all tests of a module that leave both as they were."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._pair: tuple[StandIn, Front] | None = None

    async def pair(self) -> tuple[StandIn, Front]:
        """Return them as if they were new, but for their counters."""
        if self._pair is None:
            self._pair = await self._stage.pair()
        engine, front = self._pair
        await front.begins(FrontMode.PASS)
        await front.has(in_flight=0, held=0)
        engine.forget()
        return engine, front


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    built = Stage(tmp_path_factory.mktemp("s"))
    try:
        yield Shared(built)
    finally:
        built.close()


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    built = Stage(tmp_path_factory.mktemp("f"))
    try:
        yield built
    finally:
        built.close()


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(LONG_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield session
