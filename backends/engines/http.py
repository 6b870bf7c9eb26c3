"""The keeper's HTTP door to one engine: short, bounded, marked requests that bypass every proxy."""

from __future__ import annotations

import asyncio
import json
import time
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from backends.engines.base import SCRAPE_MARK
from backends.http1 import BodyTooLongError, NoAnswerError, read_body, read_head

MAX_BODY_BYTES = 8 << 20
"""No answer that the keeper asks for comes near; `/metrics` has ~50 KB an engine rank."""

_KEEP_ALIVE_S = 2.0
"""Below uvicorn's 5 s, so that a connection is not reused in the moment in which the engine closes it."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection to the engine that nobody uses since `since` (monotonic seconds)."""

    reader: StreamReader
    writer: StreamWriter
    since: float

    @property
    def is_good(self) -> bool:
        """Whether it can be used again, as far as can be seen from here."""
        closed = self.reader.at_eof() or self.writer.transport.is_closing()
        return not closed and time.monotonic() - self.since < _KEEP_ALIVE_S


class EngineHttp:
    """GET and POST to the engine at `base_url` (without `/v1`); an implementation of `backends.engines.base.HttpGet`.

    Each request has `connect_s` to connect and `read_s` for the whole answer. With `uds` it is asked on that Unix
    socket, whatever the URL's host and port. Close it, or use it in `async with`.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        uds: str | None = None,
        connect_s: float = 1.0,
        read_s: float = 5.0,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._uds = uds
        self._api_key = api_key
        self._connect_s = connect_s
        self._read_s = read_s
        self._idle: list[_Line] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET `path` and return status and body; raises OSError, in one line, where no whole answer comes."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: object, *, timeout_s: float | None = None) -> tuple[int, bytes]:
        """POST `body` as JSON (no body where it is None) to `path`; otherwise as `get`.

        `timeout_s` replaces `read_s` for an answer that may take longer, on a connection of its own: it must not fail
        because the engine has just closed one that was kept.
        """
        return await self._ask("POST", path, body, timeout_s)

    async def aclose(self) -> None:
        """Close the connections."""
        for line in self._idle:
            line.writer.close()
        self._idle.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, method: str, path: str, body: object, timeout_s: float | None = None) -> tuple[int, bytes]:
        url = self._base_url + path
        read_s = self._read_s if timeout_s is None else timeout_s
        try:
            request = self._request(method, f"{path}{'&' if '?' in path else '?'}{SCRAPE_MARK}", body)
            if timeout_s is None and (line := self._kept()) is not None:
                try:
                    return await self._exchange(line.reader, line.writer, request, read_s)
                except (NoAnswerError, ConnectionError):
                    # The engine may have closed it just now; what may change something is not asked twice.
                    if method != "GET":
                        raise
            return await self._exchange(*await self._connected(), request, read_s)
        except TimeoutError as error:
            raise TimeoutError(f"{url} did not answer within {read_s:g} s") from error
        except _NobodyError as error:
            raise ConnectionError(f"nothing answers at {self._uds or self._base_url}") from error
        except BodyTooLongError as error:
            raise OSError(f"{url} answers with more than {MAX_BODY_BYTES >> 20} MB") from error
        except (OSError, ValueError) as error:
            raise OSError(f"{url} gave no whole answer: {error or type(error).__name__}") from error

    def _request(self, method: str, target: str, body: object) -> bytes:
        address = urlsplit(self._base_url)
        content = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {address.path}{target} HTTP/1.1",
            f"Host: {address.netloc}",
            "Accept: */*",
            "Accept-Encoding: identity",
            "User-Agent: gpubox",
        ]
        if self._api_key:
            lines.append(f"Authorization: Bearer {self._api_key}")
        if body is not None:
            lines.append("Content-Type: application/json")
        if method != "GET":
            lines.append(f"Content-Length: {len(content)}")
        if any(letter in line for line in lines for letter in "\r\n\0"):
            raise ValueError("the request would have a line break in a header")
        return "\r\n".join([*lines, "\r\n"]).encode() + content

    def _kept(self) -> _Line | None:
        """Take the connection that was used last; those that have become too old are closed."""
        line = self._idle.pop() if self._idle else None
        if line is not None and line.is_good:
            return line
        for old in (*self._idle, *([line] if line else [])):
            old.writer.close()
        self._idle.clear()
        return None

    async def _connected(self) -> tuple[StreamReader, StreamWriter]:
        address = urlsplit(self._base_url)
        tls = address.scheme == "https"
        port = address.port or (443 if tls else 80)
        try:
            async with asyncio.timeout(self._connect_s):
                if self._uds is not None:
                    return await asyncio.open_unix_connection(self._uds)
                return await asyncio.open_connection(address.hostname, port, ssl=tls or None)
        except TimeoutError:
            raise
        except OSError as error:
            raise _NobodyError from error

    async def _exchange(
        self, reader: StreamReader, writer: StreamWriter, request: bytes, read_s: float
    ) -> tuple[int, bytes]:
        """Send a request and read the whole answer; the connection is kept or closed, whatever happens."""
        is_open = False
        try:
            async with asyncio.timeout(read_s):
                writer.write(request)
                head = await read_head(reader)
                body, is_open = await read_body(reader, head, MAX_BODY_BYTES)
        finally:
            if is_open:
                self._idle.append(_Line(reader, writer, time.monotonic()))
            else:
                writer.transport.abort()
        return head.status, body


class _NobodyError(OSError):
    """No connection came about."""
