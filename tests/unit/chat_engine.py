"""An engine for the chat's tests: a real HTTP server on a thread, which says what a test makes it say, and when."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import pytest

from backends.chat import ChatSession
from backends.chat_answer import Answer, ChatChunk
from backends.chat_errors import ChatError
from backends.chat_image import Image
from backends.chat_settings import Sampling
from backends.snapshots import Connection, ModelKind


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Wire:
    """What a script writes its answer to."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def write(self, data: bytes) -> None:
        """Send raw bytes of a streamed body, as one HTTP chunk that leaves at once."""
        self._writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self._writer.drain()

    async def begin(self) -> None:
        self._writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        await self._writer.drain()

    async def event(self, event: object) -> None:
        await self.events([event])

    async def events(self, events: Sequence[object]) -> None:
        """Send events that arrive together."""
        await self.write(b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events))

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def done(self) -> None:
        await self.write(b"data: [DONE]\n\n")
        await self.end()

    async def reply(self, status: int, body: object) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        kind = b"text/html" if isinstance(body, str) else b"application/json"
        self._writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, kind, len(data), data)
        )
        await self._writer.drain()

    def die(self) -> None:
        """Break the connection, as a killed process does."""
        self._writer.transport.abort()


Script = Callable[[Request, Wire], Awaitable[None]]


def piece(text: str | None = None, *, finish: str | None = None, **delta: object) -> dict[str, object]:
    """Make one event of a chat's stream."""
    said = delta if text is None else {"content": text} | delta
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": said, "finish_reason": finish}],
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, object]:
    """Make the event that only counts."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return piece() | {"choices": [], "usage": counts | {"total_tokens": prompt_tokens + completion_tokens}}


def says(*texts: str, finish: str = "stop", tokens: int | None = None) -> Script:
    """Answer a chat with these texts, a role-only piece before them, and the usage after them."""

    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await wire.event(piece("", role="assistant"))
        for text in texts:
            await wire.event(piece(text))
        await wire.event(piece("", finish=finish))
        await wire.event(usage(7, len(texts) if tokens is None else tokens))
        await wire.done()

    return script


class FakeEngine:
    """Serves `script`; `requests` are those it got, and `gone` is set when a client leaves before its answer's end."""

    def __init__(self) -> None:
        self.script: Script = says("hello")
        self.requests: list[Request] = []
        self.gone = threading.Event()
        self.port = 0
        self._loop: asyncio.AbstractEventLoop
        self._leave: asyncio.Event
        self._listens = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def connection(self, kind: ModelKind = ModelKind.CHAT, api_key: str | None = None) -> Connection:
        return Connection(f"http://127.0.0.1:{self.port}", "m", kind, api_key)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listens.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._leave.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        request = Request(head[0].split(" ")[1], headers, body)
        self.requests.append(request)
        answering = asyncio.ensure_future(self.script(request, Wire(writer)))
        leaving = asyncio.ensure_future(reader.read())
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            self.gone.set()
        for task in (answering, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await task
        writer.close()


async def ask(
    session: ChatSession, prompt: str, sampling: Sampling | None = None, image: Image | None = None
) -> tuple[list[ChatChunk], Answer]:
    """Ask, and return the pieces and the whole answer."""
    chunks: list[ChatChunk] = []
    async for item in session.ask(prompt, sampling or Sampling(), image=image):
        if isinstance(item, Answer):
            return chunks, item
        chunks.append(item)
    raise AssertionError("no Answer came")


async def refusal(session: ChatSession, prompt: str = "hi") -> ChatError:
    """Ask what will be refused, and return the refusal: one line, and what to do."""
    with pytest.raises(ChatError) as caught:
        await ask(session, prompt)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value
