"""Passing one request on to the engine and its answer back, both as they come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from hmac import compare_digest

from aiohttp.hdrs import CONTENT_LENGTH, TRANSFER_ENCODING
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from multidict import CIMultiDict

from backends.front.engine import Body, Engine, Line
from backends.front.gate import Flight, Gate
from backends.front.link import FrontMode
from backends.front.refusals import RefusedError
from backends.front.routes import Need, need_of
from backends.http1 import read_head

log = logging.getLogger("backends.front")

GOODBYE_S = 1.0
"""So long a client may take to be told that its answer was cut off."""

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)
_NOT_PASSED_BACK = frozenset({name.decode() for name in _HOP_BY_HOP} - {"content-length"})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Passing:
    """Answers the requests of a front's port; a client that stops in the middle of its request gets `patience_s`."""

    def __init__(self, gate: Gate, engine: Engine, api_key: str | None, patience_s: float) -> None:
        self._gate = gate
        self._engine = engine
        self._api_key = api_key
        self._patience_s = patience_s

    async def answer(self, request: BaseRequest) -> StreamResponse:
        """Pass a request on, or say why not."""
        try:
            return await self._answer(request)
        except RefusedError as refused:
            return _refusal(request, refused)
        except ConnectionError:
            raise  # the client is gone
        except Exception as problem:
            # Neither the exception's text nor the request's: a key may be in both.
            where = "".join(traceback.format_tb(problem.__traceback__))
            log.error("a request failed: %s\n%s", type(problem).__name__, where)
            return _refusal(request, RefusedError(500, "front_failed", "the front failed; its log says where"))

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        need = need_of(request.method, request.raw_path)
        if "websocket" in request.headers.get("Upgrade", "").lower():
            raise RefusedError(501, "not_implemented", "this server has no websockets")
        flight: Flight | None = None
        if need is Need.ENGINE:
            if self._gate.mode is not FrontMode.PASS:
                self._check_key(request)
            flight = await self._gate.enter()
        elif need is Need.HEALTH:
            self._gate.check()
        exchange = _Exchange(request, self._engine, self._gate.name, self._patience_s)
        try:
            try:
                await exchange.run()
            finally:
                exchange.close()
                if flight is not None:
                    self._gate.leave(flight)
            return await exchange.end()
        except asyncio.CancelledError:
            if flight is None or (why := flight.was_cut()) is None:
                raise
            return await exchange.fail(why)
        except RefusedError as why:
            if self._gate.mode is FrontMode.STARTING and why.kind == "engine_unreachable":
                why = self._gate.refusal() or why
            return await exchange.fail(why)

    def _check_key(self, request: BaseRequest) -> None:
        """Let nobody wait, or have the engine woken, whom the engine would not let in."""
        if self._api_key is None:
            return
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        sent, right = (text.encode("utf-8", "surrogateescape") for text in (key, self._api_key))
        if kind.lower() != "bearer" or not compare_digest(sent, right):
            raise RefusedError(401, "unauthorized", "this server wants its API key: Authorization: Bearer KEY")


class _Exchange:
    """One request at the engine."""

    __slots__ = ("_answer", "_engine", "_fault", "_is_stream", "_line", "_name", "_patience_s", "_request", "_sending")

    def __init__(self, request: BaseRequest, engine: Engine, name: str, patience_s: float) -> None:
        self._request = request
        self._engine = engine
        self._name = name
        self._patience_s = patience_s
        self._fault: RefusedError | None = None
        self._line: Line | None = None
        self._sending: asyncio.Task[None] | None = None
        self._answer: StreamResponse | None = None
        self._is_stream = False

    async def run(self) -> None:
        """Pass all of it; raises RefusedError for what the engine does, OSError where the client is gone."""
        request = self._request
        try:
            line = self._line = await self._engine.line()
        except OSError as error:
            text = f"the engine of {self._name} does not answer"
            raise RefusedError(503, "engine_unreachable", text, 5) from error
        await self._send(line)
        try:
            head = await read_head(line.reader)
            body = Body(line.reader, head, request.method)
        except OSError as error:
            raise self._lost("before it answered") from error
        headers = CIMultiDict((n, v) for n, v in head.headers.items() if n not in _NOT_PASSED_BACK)
        answer = self._answer = StreamResponse(status=head.status, headers=headers)
        self._is_stream = headers.get("content-type", "").lower().startswith("text/event-stream")
        _end_after_upgrade(request, answer)
        await answer.prepare(request)
        parts = body.parts()
        while True:
            try:
                part = await anext(parts, None)
            except OSError as error:
                raise self._lost("in the middle of its answer") from error
            if part is None:
                break
            await answer.write(part)
        if body.is_reusable and (self._sending is None or self._sending.done()):
            self._engine.keep(line)
            self._line = None

    def close(self) -> None:
        """Have the engine give up what it still works on."""
        if self._sending is not None:
            self._sending.cancel()
        if self._line is not None:
            self._line.abort()
            self._line = None

    async def end(self) -> StreamResponse:
        """Tell the client that this was all."""
        assert self._answer is not None
        await self._answer.write_eof()
        return self._answer

    async def fail(self, why: RefusedError) -> StreamResponse:
        """Tell the client why there is no more; an answer that cannot tell is broken off where the client sees it."""
        if self._answer is None:
            return _refusal(self._request, why)
        transport = self._request.transport
        if self._is_stream and transport is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._answer.write(why.event())
                    await self._answer.write_eof()
                    return self._answer
        if transport is not None:
            transport.abort()
        raise ConnectionResetError

    async def _send(self, line: Line) -> None:
        """Send head and body; a body that has not come yet is sent beside reading the answer."""
        request = self._request
        raw = request.headers
        is_chunked = TRANSFER_ENCODING in raw
        length = raw.get(CONTENT_LENGTH)
        lines = [f"{request.method} {request.raw_path} HTTP/1.1".encode("ascii")]
        dropped: set[bytes] | frozenset[bytes] = _HOP_BY_HOP
        if (connection := raw.get("Connection")) is not None:
            dropped = dropped | {name.strip().lower().encode() for name in connection.split(",")}
        lines += [name + b": " + value for name, value in request.raw_headers if name.lower() not in dropped]
        if "Host" not in raw:
            lines.append(b"Host: localhost")
        if is_chunked:
            lines.append(b"Transfer-Encoding: chunked")
        elif length is not None:
            lines.append(b"Content-Length: " + length.encode("ascii"))
        head = b"\r\n".join((*lines, b"\r\n"))
        content = request.content
        if content.is_eof():
            body = content.read_nowait(-1)
            if is_chunked:
                body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
            line.writer.write(head + body)
            return
        line.writer.write(head)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(_CONTINUE)
        self._sending = asyncio.create_task(self._send_body(line, is_chunked))

    async def _send_body(self, line: Line, is_chunked: bool) -> None:
        try:
            while part := await self._part():
                line.writer.write(b"%x\r\n%b\r\n" % (len(part), part) if is_chunked else part)
                await line.writer.drain()
            if is_chunked:
                line.writer.write(b"0\r\n\r\n")
        except RefusedError as fault:
            self._fault = fault
            line.abort()
        except OSError:
            pass  # an engine that wants no more says why in its answer

    async def _part(self) -> bytes:
        """Return the next part of the body; raises RefusedError where none comes, or it cannot be read."""
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._request.content.readany()
        except TimeoutError as error:
            text = f"the rest of the request did not come within {self._patience_s:g} s"
            raise RefusedError(408, "request_timeout", text) from error
        except Exception as error:
            raise RefusedError(400, "bad_request", "the body of the request cannot be read") from error

    def _lost(self, when: str) -> RefusedError:
        """Return why the connection to the engine has ended: by the client's fault, or the engine's."""
        if self._fault is not None:
            return self._fault
        return RefusedError(502, "engine_lost", f"the engine of {self._name} ended {when}")


def _refusal(request: BaseRequest, why: RefusedError) -> Response:
    """Return an error as a whole answer."""
    headers = {"Retry-After": str(why.retry_after_s)} if why.retry_after_s is not None else None
    answer = Response(status=why.status, body=why.body(), content_type="application/json", headers=headers)
    _end_after_upgrade(request, answer)
    return answer


def _end_after_upgrade(request: BaseRequest, answer: StreamResponse) -> None:
    """Have the connection closed after a request that asked for another protocol: what follows it is not read."""
    if "Upgrade" in request.headers:
        answer.force_close()
