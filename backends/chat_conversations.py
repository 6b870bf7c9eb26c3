"""The conversations of this run of gpubox, several a server: they outlive the screen that shows them.

All of it belongs to one event loop. Answers are written by jobs that whoever makes `Conversations` runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from backends.chat import ChatSession
from backends.chat_answer import Answer, ChatChunk, Embedding, Turn
from backends.chat_errors import AnswerCutError
from backends.chat_image import Image
from backends.chat_settings import Sampling
from backends.errors import GpuboxError
from backends.snapshots import Connection, ModelKind

BURST_S = 0.005
"""How long tokens that have come already are taken in without a pause."""

NEAR_ITS_END = 0.8
"""The part of a context from which on it is said that it will be full soon."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Job(Protocol):
    """Work under way that can be stopped: a task, or a worker of a screen's."""

    def cancel(self) -> object:
        """Stop it."""


@dataclass(slots=True, eq=False)
class Exchange:
    """One question and what came of it; `text` and `reasoning` grow while `is_open`.

    Once it is closed there is an answer, an embedding, a problem, or (of an answer that broke off) both; nothing where
    it `was_stopped` before it began. `is_under_way` says that its job has had its first step. `attempts`
    are all exchanges with this question at this place, shared by all of them: one more each time it is asked again.
    """

    prompt: str
    asked_at: float
    kind: ModelKind
    image: Image | None = None
    text: str = ""
    reasoning: str = ""
    is_open: bool = True
    is_under_way: bool = False
    was_stopped: bool = False
    answer: Answer | None = None
    embedding: Embedding | None = None
    problem: GpuboxError | None = None
    attempts: list[Exchange] = field(default_factory=list)

    @property
    def turn(self) -> Turn | None:
        """The turn that a model is told of it; None where there was no answer."""
        return Turn(self.prompt, self.answer, self.image) if self.answer is not None else None


@dataclass(slots=True, eq=False)
class Conversation:
    """What was asked of one server and how, and the question that is not sent yet (`draft`, with its `image`).

    `edited` is the number of the question that the draft is a new version of.
    """

    server: str
    title: str = ""
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    exchanges: list[Exchange] = field(default_factory=list)
    draft: str = ""
    image: Image | None = None
    edited: int | None = None
    session: ChatSession | None = None
    job: Job | None = None

    @property
    def name(self) -> str:
        """Its title, or the beginning of its first question."""
        if self.title or not self.exchanges:
            return self.title or "New chat"
        return " ".join(self.exchanges[0].prompt.split())[:60]

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being waited for or written."""
        return bool(self.exchanges) and self.exchanges[-1].is_open

    @property
    def answers(self) -> list[Answer]:
        """All answers so far."""
        return [exchange.answer for exchange in self.exchanges if exchange.answer is not None]

    @property
    def context_tokens(self) -> int:
        """How many tokens the last answer and all before it take of the context, as the engine counts; 0 if unknown."""
        counts = (one.prompt_tokens + one.completion_tokens for one in reversed(self.answers) if one.prompt_tokens)
        return next(counts, 0)

    @property
    def written_tokens(self) -> int:
        """How many tokens all its answers have."""
        return sum(answer.completion_tokens for answer in self.answers)


class Conversations:
    """Asks servers' models and keeps what they answer; each server has one conversation that is current."""

    def __init__(
        self,
        run: Callable[[Coroutine[Any, Any, None], str], Job],
        connection: Callable[[str], Awaitable[Connection]],
        now: Callable[[], float],
    ) -> None:
        """`run` starts a job under a name; `connection` tells how a server is reached now; `now` is Unix time."""
        self._run = run
        self._connection = connection
        self._now = now
        self._all: dict[str, list[Conversation]] = {}
        self._current: dict[str, Conversation] = {}

    def all(self, server: str) -> tuple[Conversation, ...]:
        """Return the conversations with `server`, the newest first; there is always one."""
        self.current(server)
        return tuple(reversed(self._all[server]))

    def current(self, server: str) -> Conversation:
        """Return the conversation with `server` that was shown last, a new one where there is none yet."""
        return self._current[server] if server in self._current else self.new(server)

    def show(self, conversation: Conversation) -> None:
        """Make it its server's current one."""
        self._current[conversation.server] = conversation

    def new(self, server: str, *, title: str = "", shown: bool = True) -> Conversation:
        """Begin a conversation with the current one's system prompt and settings; an empty one is taken again."""
        kept, former = self._all.setdefault(server, []), self._current.get(server)
        made = next((one for one in kept if not one.exchanges and not one.title), None) if not title else None
        if made is None:
            made = Conversation(server, title)
            kept.append(made)
        else:
            kept.append(kept.pop(kept.index(made)))
        if former is not None and former is not made:
            made.system, made.sampling = former.system, former.sampling
        if shown or former is None:
            self._current[server] = made
        return made

    def branch(self, conversation: Conversation, at: int) -> Conversation:
        """Begin another conversation that shares the first `at` exchanges with this one, and show it."""
        title = f"{conversation.name.removesuffix(' (branch)')} (branch)"
        made = Conversation(
            conversation.server,
            title,
            conversation.system,
            conversation.sampling,
            conversation.exchanges[:at],
        )
        self._all[conversation.server].append(made)
        self.show(made)
        return made

    def delete(self, conversation: Conversation) -> None:
        """Forget a conversation, stopping its answer; the newest one that is left is current then."""
        self.stop(conversation)
        kept = self._all[conversation.server]
        kept.remove(conversation)
        if conversation.session is not None:
            self._run(conversation.session.aclose(), "chat close")
        if self._current.get(conversation.server) is conversation:
            del self._current[conversation.server]
            if kept:
                self.show(kept[-1])

    def ask(self, conversation: Conversation, prompt: str, kind: ModelKind, image: Image | None = None) -> Exchange:
        """Send a question; its exchange fills as the answer comes, whatever screen is shown."""
        exchange = Exchange(prompt, self._now(), kind, image)
        exchange.attempts.append(exchange)
        conversation.exchanges.append(exchange)
        self._begin(conversation, exchange)
        return exchange

    def ask_again(self, conversation: Conversation) -> Exchange | None:
        """Ask the last question once more; the answers before stay among its attempts. None where there is none."""
        if not conversation.exchanges or conversation.is_answering:
            return None
        former = conversation.exchanges[-1]
        exchange = Exchange(former.prompt, self._now(), former.kind, former.image, attempts=former.attempts)
        exchange.attempts.append(exchange)
        conversation.exchanges[-1] = exchange
        self._begin(conversation, exchange)
        return exchange

    def turn_over(self, conversation: Conversation, step: int) -> bool:
        """Show an earlier or later attempt at the last question: the conversation goes on from it then."""
        if not conversation.exchanges or conversation.is_answering:
            return False
        shown = conversation.exchanges[-1]
        at = shown.attempts.index(shown) + step
        if not 0 <= at < len(shown.attempts):
            return False
        conversation.exchanges[-1] = shown.attempts[at]
        return True

    def stop(self, conversation: Conversation) -> None:
        """Stop the answer that is being written; the engine stops too, and what there is of it stays."""
        if conversation.job is not None and conversation.is_answering:
            exchange = conversation.exchanges[-1]
            exchange.was_stopped = True
            # A job that is cancelled before its first step never gets there, so its end is no end of the exchange.
            exchange.is_open = exchange.is_under_way
            conversation.job.cancel()

    def _begin(self, conversation: Conversation, exchange: Exchange) -> None:
        conversation.job = self._run(self._answer(conversation, exchange), f"chat {conversation.server}")

    async def _answer(self, conversation: Conversation, exchange: Exchange) -> None:
        exchange.is_under_way = True
        session: ChatSession | None = None
        turns, yielded_at = 0, time.monotonic()
        try:
            session = await self._session(conversation)
            session.go_on_from([one.turn for one in conversation.exchanges if one is not exchange and one.turn])
            turns = len(session.turns)
            exchange.kind = session.connection.kind
            if exchange.kind is ModelKind.EMBEDDING:
                exchange.embedding = await session.embed(exchange.prompt)
                return
            asked = session.ask(exchange.prompt, conversation.sampling, image=exchange.image)
            async with contextlib.aclosing(asked) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Answer):
                        exchange.answer = piece
                    else:
                        self._take(exchange, piece)
                        # A burst of tokens must not keep the screen from being drawn, nor wait for it at each token.
                        if time.monotonic() - yielded_at > BURST_S:
                            await asyncio.sleep(0)
                            yielded_at = time.monotonic()
        except AnswerCutError as error:
            exchange.answer, exchange.problem = error.answer, error
        except GpuboxError as error:
            exchange.problem = error
        finally:
            if exchange.was_stopped and session is not None and len(session.turns) > turns:
                exchange.answer = session.turns[-1].answer
            exchange.is_open = False

    async def _session(self, conversation: Conversation) -> ChatSession:
        """Return the conversation's session, another one where its server is reached in another way than before."""
        connection = await self._connection(conversation.server)
        session = conversation.session
        if session is None or session.connection != connection:
            if session is not None:
                await session.aclose()
            session = conversation.session = ChatSession(connection)
        session.system = conversation.system or None
        return session

    def _take(self, exchange: Exchange, chunk: ChatChunk) -> None:
        if chunk.reasoning:
            exchange.reasoning += harmless(chunk.reasoning)
        if chunk.text:
            exchange.text += harmless(chunk.text)


def harmless(text: str) -> str:
    """Leave out control characters: what a model writes must not steer the terminal."""
    return _CONTROL.sub("", text)
