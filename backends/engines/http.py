"""The keeper's HTTP door to one engine: short, bounded, marked requests that bypass every proxy."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import httpx

from backends.engines.base import SCRAPE_MARK

MAX_BODY_BYTES = 8 << 20
"""No answer that the keeper asks for comes near; `/metrics` has ~50 KB an engine rank."""

_KEEP_ALIVE_S = 2.0
"""Below uvicorn's 5 s, so that a connection is not reused in the moment in which the engine closes it."""


class EngineHttp:
    """GET and POST to the engine at `base_url` (without `/v1`); an implementation of `backends.engines.base.HttpGet`.

    Each request has `connect_s` to connect and `read_s` for the whole answer. Close it, or use it in `async with`.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, *, connect_s: float = 1.0, read_s: float = 5.0
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._read_s = read_s
        self._whole_s = connect_s + read_s
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(read_s, connect=connect_s),
            limits=httpx.Limits(max_connections=4, keepalive_expiry=_KEEP_ALIVE_S),
            trust_env=False,
            # Reading the machine's certificates takes 40 ms of the keeper's loop.
            verify=self._base_url.startswith("https:"),
        )

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET `path` and return status and body; raises OSError, in one line, where no whole answer comes."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        """POST `body` as JSON (no body where it is None) to `path`; otherwise as `get`."""
        return await self._ask("POST", path, body)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, method: str, path: str, body: object) -> tuple[int, bytes]:
        url = self._base_url + path
        marked = f"{url}{'&' if '?' in path else '?'}{SCRAPE_MARK}"
        try:
            # httpx bounds the wait for each part of an answer; this bounds the whole of one that trickles in.
            async with asyncio.timeout(self._whole_s):
                return await self._read(method, marked, body, url)
        except httpx.ConnectError as error:
            raise ConnectionError(f"nothing answers at {self._base_url}") from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise TimeoutError(f"{url} did not answer within {self._read_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(f"{url} gave no whole answer: {error or type(error).__name__}") from error

    async def _read(self, method: str, marked: str, body: object, url: str) -> tuple[int, bytes]:
        parts = bytearray()
        async with self._client.stream(method, marked, json=body) as response:
            async for part in response.aiter_bytes():
                parts += part
                if len(parts) > MAX_BODY_BYTES:
                    raise OSError(f"{url} answers with more than {MAX_BODY_BYTES >> 20} MB")
        return response.status_code, bytes(parts)
