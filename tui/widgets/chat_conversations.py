"""The conversations of this run of gpubox, one a server: they outlive the screen that shows them, answers included."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from textual.app import App
from textual.worker import Worker

from backends.chat import Answer, AnswerCutError, ChatChunk, ChatSession, Embedding
from backends.errors import GpuboxError
from backends.snapshots import Connection, ModelKind

BURST_S = 0.01
"""How long tokens that have come already are taken in without a pause."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(slots=True, eq=False)
class Exchange:
    """One question and what came of it; `text` and `reasoning` grow while `is_open`.

    Once it is closed there is an answer, an embedding, a problem, or (of an answer that broke off) both.
    """

    prompt: str
    asked_at: float
    kind: ModelKind
    text: str = ""
    reasoning: str = ""
    first_text_at: float | None = None
    is_open: bool = True
    was_stopped: bool = False
    answer: Answer | None = None
    embedding: Embedding | None = None
    problem: GpuboxError | None = None


@dataclass(slots=True, eq=False)
class Conversation:
    """What was asked of one server, the question that is not sent yet, and the answer that is being written."""

    server: str
    exchanges: list[Exchange] = field(default_factory=list)
    draft: str = ""
    session: ChatSession | None = None
    worker: Worker[None] | None = None

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being waited for or written."""
        return bool(self.exchanges) and self.exchanges[-1].is_open


class Conversations:
    """Asks servers' models, in workers of the app's own, and keeps what they answer."""

    def __init__(
        self, app: App[None], connection: Callable[[str], Awaitable[Connection]], now: Callable[[], float]
    ) -> None:
        self._app = app
        self._connection = connection
        self._now = now
        self._of: dict[str, Conversation] = {}

    def of(self, server: str) -> Conversation:
        """Return the conversation with `server`, a new one where there is none yet."""
        return self._of.setdefault(server, Conversation(server))

    def ask(self, conversation: Conversation, prompt: str, kind: ModelKind) -> Exchange:
        """Send a question; its exchange fills as the answer comes, whatever screen is shown."""
        exchange = Exchange(prompt, self._now(), kind)
        conversation.exchanges.append(exchange)
        conversation.worker = self._app.run_worker(
            self._answer(conversation, exchange),
            name=f"chat {conversation.server}",
            group=f"chat {conversation.server}",
        )
        return exchange

    def stop(self, conversation: Conversation) -> None:
        """Stop the answer that is being written; the engine stops too, and what there is of it stays."""
        if conversation.worker is not None and conversation.is_answering:
            conversation.exchanges[-1].was_stopped = True
            conversation.worker.cancel()

    def begin_anew(self, server: str) -> None:
        """Forget the conversation with `server`."""
        former = self._of.pop(server, None)
        if former is not None:
            self.stop(former)
            if former.session is not None:
                self._app.run_worker(former.session.aclose(), name="chat close")

    async def _answer(self, conversation: Conversation, exchange: Exchange) -> None:
        session: ChatSession | None = None
        turns, yielded_at = 0, time.monotonic()
        try:
            session = await self._session(conversation)
            turns = len(session.turns)
            exchange.kind = session.connection.kind
            if exchange.kind is ModelKind.EMBEDDING:
                exchange.embedding = await session.embed(exchange.prompt)
                return
            async with contextlib.aclosing(session.ask(exchange.prompt)) as pieces:
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
        """Return the server's session; where the server was started anew, one that goes on with the old one's turns."""
        connection = await self._connection(conversation.server)
        session = conversation.session
        if session is None or session.connection != connection:
            turns = session.turns if session else ()
            if session is not None:
                await session.aclose()
            session = conversation.session = ChatSession(connection, turns=turns)
        return session

    def _take(self, exchange: Exchange, chunk: ChatChunk) -> None:
        exchange.reasoning += harmless(chunk.reasoning)
        if chunk.text:
            if exchange.first_text_at is None:
                exchange.first_text_at = self._now()
            exchange.text += harmless(chunk.text)


def harmless(text: str) -> str:
    """Leave out control characters: what a model writes must not steer the terminal."""
    return _CONTROL.sub("", text)
