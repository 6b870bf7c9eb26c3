"""The way to the keeper: what every screen and every command speaks to it with.

`KeeperClient` blocks and is cheap to import: commands use it. `AsyncKeeper` is what screens use; it and the simulated
box implement `backends.link.KeeperLink`, so a screen does not know which of them it shows.
"""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from backends import paths
from backends.errors import KeeperError, from_code
from backends.http1 import read_head
from backends.orphans import Orphan, Reaped
from backends.readonly import check_keeper_start, check_request
from backends.snapshots import (
    Connection,
    Event,
    Series,
    Server,
    Snapshot,
    StartRequest,
    SwitchRequest,
    Update,
    dump,
)
from backends.switches import Level, Switch, SwitchChoice
from backends.wire import WireError, read_as

if TYPE_CHECKING:
    from backends.records import Launch

REQUEST_TIMEOUT_S = 30.0
KEEPER_START_S = 20.0
STREAM_LINE_BYTES = 64 << 20
"""The longest line of the event stream: a snapshot of hundreds of servers has a MB."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("gpubox", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


class KeeperClient:
    """A blocking client of the keeper behind `socket_path` (default: this user's, on this machine)."""

    def __init__(self, socket_path: Path | None = None) -> None:
        self.socket_path = socket_path or paths.keeper_socket()

    def request(self, method: str, route: str, body: bytes | None = None) -> bytes:
        """Send one request; returns the body of the answer, raises KeeperError or the error that the keeper sent."""
        check_request(method)
        connection = _UnixConnection(self.socket_path, REQUEST_TIMEOUT_S)
        try:
            connection.request(method, route, body, {"content-type": "application/json"} if body else {})
            response = connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as problem:
            raise KeeperError(
                f"the keeper does not answer at {self.socket_path}: {problem or type(problem).__name__}",
                f"see {paths.state_dir() / 'keeper.log'}",
            ) from problem
        finally:
            connection.close()
        if status >= 400:
            raise _error_of(status, data)
        return data

    def is_up(self) -> bool:
        """Whether a keeper listens; asks nothing of it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(1.0)
            try:
                door.connect(os.fspath(self.socket_path))
            except OSError:
                return False
            return True

    def snapshot(self) -> Snapshot:
        """Return all that the keeper knows now."""
        answer: Snapshot = _read(Snapshot, self.request("GET", "/v1/snapshot"))
        return answer

    def start(self, request: StartRequest) -> Server:
        """See KeeperLink."""
        answer: Server = _read(Server, self.request("POST", "/v1/servers", dump(request)))
        return answer

    def stop(self, name: str, *, force: bool = False) -> Server:
        """See KeeperLink."""
        answer: Server = _read(Server, self.request("POST", f"{_server(name)}/stop?force={int(force)}"))
        return answer

    def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """See KeeperLink."""
        body = None if profile is None else json.dumps(profile).encode()
        answer: Server = _read(Server, self.request("POST", f"{_server(name)}/restart", body))
        return answer

    def sleep(self, name: str, level: Level | None = None) -> Server:
        """See KeeperLink."""
        answer: Server = _read(Server, self.request("POST", f"{_server(name)}/sleep?level={level or ''}"))
        return answer

    def switch(self, request: SwitchRequest) -> Switch:
        """See KeeperLink."""
        answer: Switch = _read(Switch, self.request("POST", "/v1/switches", dump(request)))
        return answer

    def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """See KeeperLink."""
        answer: tuple[SwitchChoice, ...] = _read(tuple[SwitchChoice, ...], self.request("GET", "/v1/switches"))
        return answer

    def profile(self, name: str) -> dict[str, Any]:
        """See KeeperLink."""
        answer: dict[str, Any] = _read(dict[str, Any], self.request("GET", f"{_server(name)}/profile"))
        return answer

    def forget(self, name: str) -> None:
        """See KeeperLink."""
        self.request("DELETE", _server(name))

    def connection(self, name: str) -> Connection:
        """See KeeperLink."""
        answer: Connection = _read(Connection, self.request("GET", f"{_server(name)}/connection"))
        return answer

    def series(self, route: str) -> Series:
        """Return the series behind a route of servers or GPUs."""
        answer: Series = _read(Series, self.request("GET", f"{route}/series"))
        return answer

    def history(self) -> tuple[Event, ...]:
        """See KeeperLink."""
        answer: tuple[Event, ...] = _read(tuple[Event, ...], self.request("GET", "/v1/history"))
        return answer

    def orphans(self) -> tuple[Orphan, ...]:
        """See KeeperLink."""
        answer: tuple[Orphan, ...] = _read(tuple[Orphan, ...], self.request("GET", "/v1/orphans"))
        return answer

    def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        """See KeeperLink."""
        asked = json.dumps({"pid": pid, "start_ticks": start_ticks, "foreign": foreign}).encode()
        answer: Reaped = _read(Reaped, self.request("POST", "/v1/reap", asked))
        return answer

    def shutdown(self) -> None:
        """Ask the keeper to end; servers go on."""
        self.request("POST", "/v1/shutdown")


class AsyncKeeper:
    """The keeper behind its socket, for screens: requests run in threads, updates on the event loop."""

    def __init__(self, client: KeeperClient | None = None, *, starts_keeper: bool = True) -> None:
        self._client = client or KeeperClient()
        self._starts_keeper = starts_keeper

    async def updates(self) -> AsyncIterator[Update]:
        """See KeeperLink; starts a keeper where there is none, unless it was told not to."""
        if self._starts_keeper:
            await asyncio.to_thread(ensure_keeper, self._client)
        writer = None
        try:
            path = os.fspath(self._client.socket_path)
            reader, writer = await asyncio.open_unix_connection(path, limit=STREAM_LINE_BYTES)
            # HTTP/1.0, so that the answer comes without chunks. httpx takes 0.1 s to import and to make a client.
            writer.write(b"GET /v1/events HTTP/1.0\r\nHost: gpubox\r\n\r\n")
            status = (await read_head(reader)).status
            if status >= 400:
                raise _error_of(status, await reader.read())
            while line := await reader.readline():
                yield _read(Update, line)
        except (OSError, ValueError) as problem:
            raise KeeperError(f"the keeper went away: {problem or type(problem).__name__}") from problem
        finally:
            if writer is not None:
                writer.close()
        raise KeeperError("the keeper closed its event stream")

    async def start(self, request: StartRequest) -> Server:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.start, request)

    async def stop(self, name: str, *, force: bool = False) -> Server:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.stop, name, force=force)

    async def restart(self, name: str, profile: dict[str, Any] | None = None) -> Server:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.restart, name, profile)

    async def sleep(self, name: str, level: Level | None = None) -> Server:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.sleep, name, level)

    async def switch(self, request: SwitchRequest) -> Switch:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.switch, request)

    async def switch_choices(self) -> tuple[SwitchChoice, ...]:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.switch_choices)

    async def profile(self, name: str) -> dict[str, Any]:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.profile, name)

    async def forget(self, name: str) -> None:
        """See KeeperLink."""
        await asyncio.to_thread(self._client.forget, name)

    async def connection(self, name: str) -> Connection:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.connection, name)

    async def server_series(self, name: str) -> Series:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.series, _server(name))

    async def gpu_series(self, uuid: str) -> Series:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.series, f"/v1/gpus/{quote(uuid, safe='')}")

    async def history(self) -> tuple[Event, ...]:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.history)

    async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
        """See KeeperLink; the records are read here, as logs are, whether a keeper runs or not."""
        return await asyncio.to_thread(_launches, limit)

    async def orphans(self) -> tuple[Orphan, ...]:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.orphans)

    async def reap(self, pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        """See KeeperLink."""
        return await asyncio.to_thread(self._client.reap, pid, start_ticks, foreign=foreign)


def _launches(limit: int) -> tuple[Launch, ...]:
    from backends.records import Records

    records = Records(paths.records_path())
    launches = records.launches(limit=limit)
    if records.problem is not None:
        raise KeeperError(records.problem, "the keeper sets a broken file aside at the next launch")
    return launches


def ensure_keeper(client: KeeperClient | None = None) -> KeeperClient:
    """Return a client of a keeper that listens, starting one where there is none; raises KeeperError.

    The keeper tells through a pipe that it listens, so nothing here waits for luck. Two clients that start one at the
    same time get the same keeper: the second one finds the lock held and ends once the first listens.
    """
    client = client or KeeperClient()
    if client.is_up():
        return client
    check_keeper_start()
    state = paths.private(paths.state_dir())
    log_path = state / "keeper.log"
    read_end, write_end = os.pipe()
    try:
        fcntl.fcntl(write_end, fcntl.F_SETFD, 0)
        with open(log_path, "ab", opener=_private_file) as log:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "backends.keeper", "--ready-fd", str(write_end)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=os.environ | {"PYTHONPATH": _import_path()},
                start_new_session=True,
                pass_fds=[write_end],
            )
        os.close(write_end)
        write_end = -1
        readable, _, _ = select.select([read_end], [], [], KEEPER_START_S)
        said = os.read(read_end, 1) if readable else b""
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    if said != b"1":
        raise KeeperError(f"the keeper could not be started: {_why_not(child, log_path)}", f"see {log_path}")
    return client


def _why_not(child: subprocess.Popen[bytes], log_path: Path) -> str:
    try:
        code = child.wait(1.0)
    except subprocess.TimeoutExpired:
        return f"it did not get ready within {KEEPER_START_S:.0f} s"
    said = log_path.read_text(errors="replace").splitlines()
    return f"it ended with code {code}: {said[-1]}" if said else f"it ended with code {code}"


def _import_path() -> str:
    """Make sure that the keeper imports this very gpubox, however it was found."""
    root = str(Path(__file__).resolve().parent.parent)
    given = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([root, *[part for part in given.split(os.pathsep) if part and part != root]])


def _private_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _read(kind: Any, data: bytes | str) -> Any:
    try:
        return read_as(kind, data)
    except WireError as problem:
        raise KeeperError(
            f"the keeper speaks another version of gpubox ({problem})", "end it: gpubox shutdown"
        ) from problem


def _server(name: str) -> str:
    return f"/v1/servers/{quote(name, safe='')}"


def _error_of(status: int, data: bytes) -> Exception:
    try:
        error: dict[str, Any] = json.loads(data)["error"]
        return from_code(error["code"], error["message"], error.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        return KeeperError(f"the keeper answered {status}: {data[:200].decode(errors='replace')}")
