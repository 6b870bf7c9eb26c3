"""Talk with a server's model through the openai client: streamed answers with timings, raw completions, embeddings.

The client is imported only when the first question is asked, on a thread: it takes half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from backends.chat_answer import Answer, Answering, ChatChunk, Embedding, Turn
from backends.chat_errors import cut_off, refusal, told
from backends.chat_image import Image
from backends.chat_settings import Sampling
from backends.chat_stream import events
from backends.errors import ConflictError, UsageError
from backends.snapshots import Connection, ModelKind

if TYPE_CHECKING:
    import openai
    from openai.types import Completion
    from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

COMPLETION_MAX_TOKENS = 256
"""Where nobody says: vLLM would stop a raw completion after 16 tokens, and a base model may never stop."""

_CONNECT_S = 5.0
_SILENCE_S = 600.0
"""A long prompt, a full queue or a server that wakes up may keep the first token waiting for minutes."""

_FIRST_VALUES = 8
_DEFAULT = Sampling()
_USAGE: tuple[dict[str, bool], ...] = (
    {"include_usage": True, "continuous_usage_stats": True},
    {"include_usage": True},
    {},
)
"""How the engine is asked to count: with each chunk, so that the first one's tokens are known; else at the end."""


class ChatSession:
    """A conversation with one server; give it a former session's `turns` to go on with them.

    A completion model gets the bare prompt; any other is sent the system prompt and all turns. Close it, or use it in
    `async with`, on the event loop that asked.
    """

    def __init__(self, connection: Connection, *, system: str | None = None, turns: Sequence[Turn] = ()) -> None:
        self.connection = connection
        self.system = system
        self._turns = list(turns)
        self._client: openai.AsyncOpenAI | None = None
        self._usage = 0
        self._is_answering = False

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, cut answers included; questions that got no answer are not in it."""
        return tuple(self._turns)

    def go_on_from(self, turns: Sequence[Turn]) -> None:
        """Take other turns for what was said before; raises ConflictError while an answer is being written."""
        self._refuse_two_at_once()
        self._turns = list(turns)

    def _refuse_two_at_once(self) -> None:
        if self._is_answering:
            raise ConflictError("the last answer is still being written", "wait for it, or stop it first")

    async def ask(
        self, prompt: str, sampling: Sampling = _DEFAULT, *, image: Image | None = None
    ) -> AsyncGenerator[ChatChunk | Answer, None]:
        """Yield the answer to `prompt` (and a picture) in pieces as they arrive, and last of all the Answer.

        To stop it, close the generator (`contextlib.aclosing`) or cancel the task: the engine stops too, and what had
        arrived stays in `turns` as cut. Raises AnswerCutError where the engine breaks off, ChatError where it does
        not answer at all, UsageError for an embedding model or a picture for a model that reads text alone,
        ConflictError while another answer is being written.
        """
        if self.connection.kind is ModelKind.EMBEDDING:
            raise UsageError(f"{self.connection.served_name} makes embeddings, it cannot chat", "ask for an embedding")
        if image is not None and self.connection.kind is ModelKind.COMPLETION:
            raise UsageError(f"{self.connection.served_name} takes no pictures", "it continues text; ask without it")
        self._refuse_two_at_once()
        self._is_answering = True
        answering = Answering()
        try:
            client = await self._connected()
            stream = await self._open(client, self._request(prompt, sampling, image), answering)
            try:
                async with contextlib.aclosing(events(stream)) as packets:
                    async for packet in packets:
                        for event in packet:
                            if chunk := answering.take(event):
                                yield chunk
            finally:
                await stream.close()
            if answering.finish_reason is None:
                raise EOFError("the stream ended before the answer")
        except Exception as error:
            if not answering.has_begun:
                raise refusal(error, self.connection, _base_url(self.connection)) from error
            cut = answering.answer(cut=True)
            self._turns.append(Turn(prompt, cut, image))
            raise cut_off(error, cut) from error
        except BaseException:
            if answering.has_begun:
                self._turns.append(Turn(prompt, answering.answer(cut=True), image))
            raise
        finally:
            self._is_answering = False
        answer = answering.answer()
        self._turns.append(Turn(prompt, answer, image))
        yield answer

    async def embed(self, text: str) -> Embedding:
        """Return what the embedding model makes of `text`; raises ChatError where the engine gives no embedding."""
        client = await self._connected()
        begun = time.perf_counter()
        try:
            made = await client.embeddings.create(
                model=self.connection.served_name, input=text, encoding_format="float"
            )
            vector = made.data[0].embedding
            prompt_tokens = made.usage.prompt_tokens
        except Exception as error:
            raise refusal(error, self.connection, _base_url(self.connection)) from error
        duration_s = time.perf_counter() - begun
        norm = math.sqrt(math.fsum(value * value for value in vector))
        return Embedding(len(vector), norm, tuple(vector[:_FIRST_VALUES]), prompt_tokens, duration_s)

    async def aclose(self) -> None:
        """Close the connection; the turns stay."""
        if self._client:
            await self._client.close()
            self._client = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            self._client = await asyncio.to_thread(_new_client, self.connection)
        return self._client

    def _request(self, prompt: str, sampling: Sampling, image: Image | None) -> dict[str, object]:
        options = sampling.body(self.connection.kind)
        if self.connection.kind is ModelKind.COMPLETION:
            return {"prompt": prompt, "max_tokens": COMPLETION_MAX_TOKENS} | options
        return {"messages": self._messages(prompt, image)} | options

    async def _open(
        self, client: openai.AsyncOpenAI, request: dict[str, object], answering: Answering
    ) -> openai.AsyncStream[Any]:
        """Send the question, asking for usage; `transformers serve` refuses to be asked, and sends it all the same."""
        import openai

        while True:
            usage = _USAGE[self._usage]
            answering.restart()
            try:
                return await self._send(client, request | ({"stream_options": usage} if usage else {}))
            except openai.APIStatusError as error:
                text = told(error)
                if "continuous_usage_stats" in text and self._usage == 0:
                    self._usage = 1
                elif "stream_options" in text and usage:
                    self._usage = 2
                else:
                    raise

    async def _send(
        self, client: openai.AsyncOpenAI, request: dict[str, object]
    ) -> openai.AsyncStream[ChatCompletionChunk] | openai.AsyncStream[Completion]:
        model, prompt, messages = self.connection.served_name, request.get("prompt"), request.get("messages")
        options = {name: value for name, value in request.items() if name not in ("prompt", "messages")}
        if isinstance(prompt, str):
            return await client.completions.create(model=model, prompt=prompt, stream=True, extra_body=options)
        told_so_far = cast("list[ChatCompletionMessageParam]", messages)
        return await client.chat.completions.create(model=model, messages=told_so_far, stream=True, extra_body=options)

    def _messages(self, prompt: str, image: Image | None) -> list[dict[str, object]]:
        messages: list[dict[str, object]] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self._turns:
            # Templates want user and assistant to alternate, and some refuse an assistant who says nothing.
            if turn.answer.text:
                messages.append({"role": "user", "content": content(turn.prompt, turn.image)})
                messages.append({"role": "assistant", "content": turn.answer.text})
        messages.append({"role": "user", "content": content(prompt, image)})
        return messages


def content(prompt: str, image: Image | None) -> str | list[dict[str, object]]:
    """Return a question's content as the OpenAI API wants it: the bare text, or the picture and the text."""
    if image is None:
        return prompt
    return [{"type": "image_url", "image_url": {"url": image.url}}, {"type": "text", "text": prompt}]


def _new_client(connection: Connection) -> openai.AsyncOpenAI:
    """Import openai and make a client; runs on a thread."""
    is_first = "openai" not in sys.modules
    import openai

    client = openai.AsyncOpenAI(
        base_url=_base_url(connection),
        api_key=connection.api_key or "EMPTY",
        max_retries=0,
        timeout=openai.Timeout(_SILENCE_S, connect=_CONNECT_S),
        # A connection of its own for each question: a kept one may be closed by the engine just as it is used again.
        default_headers={"Connection": "close"},
        # openai's own class, since the library beneath it has changed; the environment's proxies reach no engine.
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
    )
    # These import more modules at their first use.
    _ = (client.chat.completions, client.completions, client.embeddings)
    if is_first:
        # What was imported stays: to look through all of it again and again while an answer streams took the garbage
        # collector up to 0.13 s at a time, in which no key was heard.
        gc.freeze()
    return client


def _base_url(connection: Connection) -> str:
    return connection.base_url.rstrip("/").removesuffix("/v1") + "/v1"
