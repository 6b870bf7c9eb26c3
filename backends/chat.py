"""Talk with a server's model through the openai client: streamed answers with timings, raw completions, embeddings.

The client is imported only when the first question is asked, on a thread: it takes half a second.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backends.errors import ConflictError, GpuboxError, UsageError
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
_CONTEXT = re.compile(r"(?:maximum (?:context|model) length (?:is|of) |max_model_len=)(\d+)")
_NO_TEMPLATE = re.compile(r"chat[ _]template", re.IGNORECASE)
_SEE_LOG = "see its log (gpubox logs)"


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """A piece of an answer as it arrives: text, or what the model thinks before it answers."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, or with `cut` what was written of it before it was stopped or its engine died.

    `ttft_s` runs from the request to the first chunk with text in it, `tokens_per_s` is of the tokens after it.
    `completion_tokens` is the engine's count; where it sent none, `is_estimate` says that the chunks were counted.
    """

    text: str
    reasoning: str
    ttft_s: float | None
    duration_s: float
    prompt_tokens: int | None
    completion_tokens: int
    is_estimate: bool
    tokens_per_s: float | None
    finish_reason: str | None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    prompt: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Embedding:
    """What an embedding model made of a text: the vector's length, its norm, and its first values."""

    dimensions: int
    norm: float
    first: tuple[float, ...]
    prompt_tokens: int
    duration_s: float


class ChatError(GpuboxError):
    """The engine did not answer, or refused to."""

    code = "chat"


class AnswerCutError(ChatError):
    """The engine broke off in the middle of an answer; `answer` is what had arrived."""

    code = "answer-cut"

    def __init__(self, message: str, hint: str, answer: Answer) -> None:
        super().__init__(message, hint)
        self.answer = answer


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
        self._asks_for_usage = True
        self._is_answering = False

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation so far, cut answers included; questions that got no answer are not in it."""
        return tuple(self._turns)

    async def ask(
        self, prompt: str, *, temperature: float | None = None, max_tokens: int | None = None
    ) -> AsyncGenerator[ChatChunk | Answer, None]:
        """Yield the answer to `prompt` in pieces as they arrive, and last of all the Answer.

        To stop it, close the generator (`contextlib.aclosing`) or cancel the task: the engine stops too, and what had
        arrived stays in `turns` as cut. Raises AnswerCutError where the engine breaks off, ChatError where it does
        not answer at all, UsageError for an embedding model, ConflictError while another answer is being written.
        """
        if self.connection.kind is ModelKind.EMBEDDING:
            raise UsageError(f"{self.connection.served_name} makes embeddings, it cannot chat", "ask for an embedding")
        if self._is_answering:
            raise ConflictError("the last answer is still being written", "wait for it, or stop it first")
        self._is_answering = True
        answering = _Answering()
        try:
            client = await self._connected()
            stream = await self._open(client, prompt, _options(temperature, max_tokens), answering)
            try:
                async for event in stream:
                    if chunk := answering.take(event):
                        yield chunk
            finally:
                await stream.close()
            if answering.finish_reason is None:
                raise EOFError("the stream ended before the answer")
        except Exception as error:
            if not answering.has_begun:
                raise _refusal(error, self.connection) from error
            cut = answering.answer(cut=True)
            self._turns.append(Turn(prompt, cut))
            raise _cut(error, cut) from error
        except BaseException:
            if answering.has_begun:
                self._turns.append(Turn(prompt, answering.answer(cut=True)))
            raise
        finally:
            self._is_answering = False
        answer = answering.answer()
        self._turns.append(Turn(prompt, answer))
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
            raise _refusal(error, self.connection) from error
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

    async def _open(
        self, client: openai.AsyncOpenAI, prompt: str, options: dict[str, object], answering: _Answering
    ) -> openai.AsyncStream[Any]:
        """Send the question, asking for usage; `transformers serve` refuses to be asked, and sends it all the same."""
        import openai

        usage: dict[str, object] = {"stream_options": {"include_usage": True}} if self._asks_for_usage else {}
        answering.restart()
        try:
            return await self._send(client, prompt, options | usage)
        except openai.APIStatusError as error:
            if not usage or "stream_options" not in _told(error):
                raise
        self._asks_for_usage = False
        answering.restart()
        return await self._send(client, prompt, options)

    async def _send(
        self, client: openai.AsyncOpenAI, prompt: str, options: dict[str, object]
    ) -> openai.AsyncStream[ChatCompletionChunk] | openai.AsyncStream[Completion]:
        model = self.connection.served_name
        if self.connection.kind is ModelKind.COMPLETION:
            options = {"max_tokens": COMPLETION_MAX_TOKENS} | options
            return await client.completions.create(model=model, prompt=prompt, stream=True, extra_body=options)
        return await client.chat.completions.create(
            model=model, messages=self._messages(prompt), stream=True, extra_body=options
        )

    def _messages(self, prompt: str) -> list[ChatCompletionMessageParam]:
        messages: list[ChatCompletionMessageParam] = []
        if self.system:
            messages.append({"role": "system", "content": self.system})
        for turn in self._turns:
            # Templates want user and assistant to alternate, and some refuse an assistant who says nothing.
            if turn.answer.text:
                messages.append({"role": "user", "content": turn.prompt})
                messages.append({"role": "assistant", "content": turn.answer.text})
        messages.append({"role": "user", "content": prompt})
        return messages


class _Answering:
    """An answer that is being written: its pieces, and when they came."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._chunks = 0
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._first_s: float | None = None
        self._last_s = 0.0
        self.restart()

    @property
    def has_begun(self) -> bool:
        return self._chunks > 0

    def restart(self) -> None:
        """Start the clock: the request goes out now."""
        self._begun_s = time.perf_counter()

    def take(self, event: Any) -> ChatChunk | None:
        """Take in one event of the stream, of a chat or of a completion; returns what it says, if anything."""
        now_s = time.perf_counter() - self._begun_s
        if event.usage:
            self._prompt_tokens = event.usage.prompt_tokens
            self._completion_tokens = event.usage.completion_tokens
        if not event.choices:
            return None
        choice = event.choices[0]
        if delta := getattr(choice, "delta", None):
            # vLLM renamed the field; versions in between send both.
            reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None) or ""
            chunk = ChatChunk(_printable(delta.content or ""), _printable(reasoning))
        else:
            chunk = ChatChunk(_printable(getattr(choice, "text", None) or ""))
        if choice.finish_reason:
            self.finish_reason = choice.finish_reason
            # The end-of-text token is counted and takes its time, though it says nothing.
            self._last_s = now_s
        if not chunk.text and not chunk.reasoning:
            return None
        self._chunks += 1
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._first_s = now_s if self._first_s is None else self._first_s
        self._last_s = now_s
        return chunk

    def answer(self, *, cut: bool = False) -> Answer:
        tokens = self._chunks if self._completion_tokens is None else self._completion_tokens
        writing_s = self._last_s - self._first_s if self._first_s is not None else 0.0
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            ttft_s=self._first_s,
            duration_s=time.perf_counter() - self._begun_s,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=tokens,
            is_estimate=self._completion_tokens is None,
            tokens_per_s=(tokens - 1) / writing_s if tokens > 1 and writing_s > 0 else None,
            finish_reason=self.finish_reason,
            cut=cut,
        )


def _printable(text: str) -> str:
    """Replace lone surrogates: JSON may hold them, no terminal and no later request can."""
    return text.encode(errors="replace").decode()


def _options(temperature: float | None, max_tokens: int | None) -> dict[str, object]:
    """Return what was asked for; what was not is left out, not sent as null, which not every engine takes."""
    options: dict[str, object] = {}
    if temperature is not None:
        options["temperature"] = temperature
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    return options


def _new_client(connection: Connection) -> openai.AsyncOpenAI:
    """Import openai and make a client; runs on a thread."""
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
    return client


def _base_url(connection: Connection) -> str:
    return connection.base_url.rstrip("/").removesuffix("/v1") + "/v1"


def _refusal(error: Exception, connection: Connection) -> ChatError:
    """Say in one line why there is no answer at all."""
    import openai

    told = _told(error)
    if isinstance(error, openai.APITimeoutError):
        return ChatError(f"{_base_url(connection)} did not answer in time", f"is it overloaded? {_SEE_LOG}")
    if isinstance(error, openai.APIConnectionError):
        if type(error.__cause__).__name__ == "ConnectError":
            return ChatError(f"nothing answers at {_base_url(connection)}", "is the server running? (gpubox status)")
        return ChatError("the engine closed the connection before it answered", _SEE_LOG)
    if isinstance(error, EOFError):
        return ChatError("the engine ended its answer before it began", _SEE_LOG)
    if not isinstance(error, openai.APIStatusError):
        return ChatError(f"the engine gave no answer that can be read: {told}", _SEE_LOG)
    if error.status_code in (401, 403):
        return ChatError("the engine refuses the API key", "the profile's api_key must be the one it was started with")
    if error.status_code == 404:
        if connection.served_name in told:
            return ChatError(f"the engine serves no model named {connection.served_name}", f"it says: {told}")
        return ChatError(
            f"the engine cannot be asked this way (HTTP 404 at {error.request.url.path})",
            "is the model of another kind: chat, completion, embedding?",
        )
    if match := _CONTEXT.search(told):
        return ChatError(
            f"this does not fit into the model's context of {match[1]} tokens",
            "begin a new chat, ask for fewer tokens, or raise max_model_len in the profile",
        )
    if _NO_TEMPLATE.search(told):
        return ChatError("the model has no chat template", "set chat_template among the profile's engine arguments")
    return ChatError(f"the engine refuses (HTTP {error.status_code}): {told or 'it does not say why'}", _SEE_LOG)


def _cut(error: Exception, answer: Answer) -> AnswerCutError:
    """Say in one line why an answer broke off."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        message = "the engine fell silent in the middle of its answer"
    elif isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
        message = f"the engine broke off its answer: {_told(error)}"
    else:
        message = "the engine went away in the middle of its answer"
    return AnswerCutError(message, f"what it wrote is kept; {_SEE_LOG}", answer)


def _told(error: Exception) -> str:
    """Return the engine's own words in one line of bounded length; empty where it sent a web page."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = " ".join(str(body or error).split())
    if text.startswith("<"):
        return ""
    return text if len(text) <= 300 else text[:299] + "…"
