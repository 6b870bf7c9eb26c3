"""An answer's events off the wire: server-sent JSON, read a packet at a time.

openai's own stream builds and checks an object tree for every token, which at 2,000 tokens a second was a third of
what the screen computed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import openai

_DATA, _DONE = b"data:", b"[DONE]"


async def events(stream: openai.AsyncStream[Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
    """Yield what arrives together, until the answer is done or the connection ends.

    Raises openai's APITimeoutError and APIConnectionError where that breaks, APIError where the engine tells of an
    error in mid-answer, and ValueError for what is no JSON. The caller closes the stream.
    """
    import openai

    request, rest = stream.response.request, b""
    packets = stream.response.aiter_bytes()
    while True:
        try:
            packet = await anext(packets, None)
        except Exception as error:  # Which library it is beneath openai, and so its exceptions, has changed before.
            is_late = any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)
            raise (openai.APITimeoutError if is_late else openai.APIConnectionError)(request=request) from error
        if packet is None:
            return
        *lines, rest = (rest + packet).split(b"\n")
        found: list[dict[str, Any]] = []
        for line in lines:
            if not line.startswith(_DATA):
                continue
            data = line[len(_DATA) :].strip()
            if data == _DONE:
                yield found
                return
            event = json.loads(data.decode(errors="replace"))
            if not isinstance(event, dict):
                raise ValueError(f"no object: {data[:80].decode(errors='replace')}")
            if problem := event.get("error"):
                yield found
                raise openai.APIError("the engine tells of an error", request=request, body=problem)
            found.append(event)
        yield found
