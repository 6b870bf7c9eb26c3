"""`gpubox chat`: one question or a conversation; the answer on standard output, all else on standard error."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import asdict
from json import dumps

from backends.chat import ChatSession
from backends.chat_answer import Answer, ChatChunk, Embedding
from backends.chat_errors import AnswerCutError
from backends.chat_settings import Sampling
from backends.errors import GpuboxError, UsageError
from backends.snapshots import Connection, ModelKind
from tui.headless.output import complain, end_quietly, say

INTERRUPTED = 130

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
"""What a model writes must not steer the terminal."""


def chat(
    name: str,
    prompt: str | None,
    *,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    json: bool,
    connection: Connection,
) -> int:
    """Ask the server `name` once, or go on asking where a person sits at the terminal; returns the exit code.

    Without `prompt` the question is read from standard input, unless that is a terminal. With `json` one object with
    the answer and its timings is printed. Raises GpuboxError where a single question gets no whole answer.
    """
    question = _question(prompt, json=json)
    talk = _Talk(name, ChatSession(connection, system=system), Sampling(temperature, max_tokens=max_tokens), json=json)
    with asyncio.Runner() as runner:
        try:
            return talk.converse(runner) if question is None else talk.ask_once(runner, question)
        except BrokenPipeError:
            end_quietly()
            return 0
        finally:
            runner.run(talk.session.aclose())


def _question(prompt: str | None, *, json: bool) -> str | None:
    """Return the one question to ask; None asks for a conversation."""
    if prompt is None:
        if sys.stdin.isatty():
            if json or not sys.stdout.isatty():
                raise UsageError("there is no question", 'give one: gpubox chat NAME "question", or on standard input')
            return None
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the question is not UTF-8 text", "models read text; convert it first") from error
    if not prompt.strip():
        raise UsageError("the question is empty", 'give one: gpubox chat NAME "question", or on standard input')
    return prompt


class _Talk:
    """Asks, shows the answer while it comes, and tells how long it took."""

    def __init__(self, name: str, session: ChatSession, sampling: Sampling, *, json: bool) -> None:
        self.session = session
        self._name = name
        self._sampling = sampling
        self._json = json
        self._is_thinking = False

    def ask_once(self, runner: asyncio.Runner, question: str) -> int:
        """Ask one question; Ctrl+C stops the engine too, and what it wrote so far is shown."""
        try:
            runner.run(self._ask(question))
        except KeyboardInterrupt:
            if self.session.turns:
                self._finish(self.session.turns[-1].answer)
            return INTERRUPTED
        except AnswerCutError as error:
            self._finish(error.answer, error)
            raise
        return 0

    def converse(self, runner: asyncio.Runner) -> int:
        """Ask until Ctrl+D; Ctrl+C stops the answer that is being written."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 -- gives input() its line editing and history
        say(f"{self._name} ({self.session.connection.served_name}): Ctrl+C stops an answer, Ctrl+D ends.")
        while True:
            try:
                question = input("> ")
                if question.strip():
                    self._ask_in_conversation(runner, question)
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()

    def _ask_in_conversation(self, runner: asyncio.Runner, question: str) -> None:
        turns = self.session.turns
        try:
            runner.run(self._ask(question))
        except KeyboardInterrupt:
            new = self.session.turns[len(turns) :]
            self._finish(new[0].answer) if new else say("stopped")
        except AnswerCutError as error:
            self._finish(error.answer, error)
            complain(error)
        except GpuboxError as error:
            complain(error)

    async def _ask(self, question: str) -> None:
        if self.session.connection.kind is ModelKind.EMBEDDING:
            self._show_embedding(await self.session.embed(question))
            return
        pieces = self.session.ask(question, self._sampling)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ChatChunk):
                    self._show(piece)
                else:
                    self._finish(piece)

    def _show(self, chunk: ChatChunk) -> None:
        if self._json:
            return
        if chunk.reasoning:
            self._is_thinking = True
            print(_harmless(chunk.reasoning, sys.stderr.isatty()), end="", file=sys.stderr, flush=True)
        if chunk.text:
            self._end_thinking()
            print(_harmless(chunk.text, sys.stdout.isatty()), end="", flush=True)

    def _end_thinking(self) -> None:
        if self._is_thinking:
            say("")
        self._is_thinking = False

    def _finish(self, answer: Answer, error: GpuboxError | None = None) -> None:
        """End the answer's last line and tell its timings; or print all of it as JSON."""
        if self._json:
            told = asdict(answer)
            about = {"server": self._name, "model": self.session.connection.served_name, "answer": told.pop("text")}
            print(dumps(about | told | {"error": error.message if error else None}), flush=True)
            return
        self._end_thinking()
        if not answer.text.endswith("\n"):
            print(flush=True)
        say(timings(answer))

    def _show_embedding(self, embedding: Embedding) -> None:
        if self._json:
            about = {"server": self._name, "model": self.session.connection.served_name}
            print(dumps(about | asdict(embedding)), flush=True)
            return
        first = ", ".join(f"{value:.4f}" for value in embedding.first)
        more = ", …" if embedding.dimensions > len(embedding.first) else ""
        print(f"{embedding.dimensions} dimensions, norm {embedding.norm:.4f}: {first}{more}", flush=True)
        say(f"{embedding.prompt_tokens} tokens · {embedding.duration_s:.2f} s")


def timings(answer: Answer) -> str:
    """Return an answer's timings in one line: `TTFT 0.12 s · 48 tokens · 103 tok/s`, 'overall' if it came at once."""
    tokens = f"{'~' if answer.is_estimate else ''}{answer.completion_tokens} token"
    parts = [tokens if answer.completion_tokens == 1 else f"{tokens}s"]
    if answer.ttft_s is not None:
        parts.insert(0, f"TTFT {answer.ttft_s:.2f} s")
    if answer.tokens_per_s is not None:
        parts.append(f"{answer.tokens_per_s:.0f} tok/s{' overall' if answer.is_overall_rate else ''}")
    if answer.cut:
        parts.append("stopped")
    elif answer.finish_reason == "length":
        parts.append("ended by the token limit")
    return " · ".join(parts)


def _harmless(text: str, is_for_terminal: bool) -> str:
    return text.translate(_CONTROLS) if is_for_terminal else text
