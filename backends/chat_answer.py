"""What an engine answers: its pieces as they come, and what they add up to, with honest timings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.chat_image import Image

MEASURABLE_S = 0.1
"""The shortest time from the first chunk to the last that a rate is read off: below, the network's hiccups decide."""


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """A piece of an answer as it arrives: text, or what the model thinks before it answers."""

    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, or with `cut` what was written of it before it was stopped or its engine died.

    `ttft_s` runs from the request to the first chunk with text in it. `tokens_per_s` is the decode rate: the tokens
    after the first chunk, over the time from the first chunk to the last. Where the answer came in one burst (one
    chunk, or all of them within `MEASURABLE_S`) no decode rate can be told: then it is all tokens over `duration_s`,
    and `is_overall_rate` says so. `completion_tokens` is the engine's count; where it sent none, `is_estimate` says
    that the chunks were counted.
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
    is_overall_rate: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, with a picture or without, and its answer."""

    prompt: str
    answer: Answer
    image: Image | None = None


@dataclass(frozen=True, slots=True)
class Embedding:
    """What an embedding model made of a text: the vector's length, its norm, and its first values."""

    dimensions: int
    norm: float
    first: tuple[float, ...]
    prompt_tokens: int
    duration_s: float


class Answering:
    """An answer that is being written: its pieces, and when they came."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._chunks = 0
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._first_tokens: int | None = None
        self._first_s: float | None = None
        self._last_s = 0.0
        self.restart()

    @property
    def has_begun(self) -> bool:
        """Whether anything of it has arrived."""
        return self._chunks > 0

    def restart(self) -> None:
        """Start the clock: the request goes out now."""
        self._begun_s = time.perf_counter()

    def take(self, event: Mapping[str, Any]) -> ChatChunk | None:
        """Take in one event of the stream, of a chat or of a completion; returns what it says, if anything."""
        now_s = time.perf_counter() - self._begun_s
        usage, choices = event.get("usage"), event.get("choices")
        if usage:
            self._prompt_tokens = usage.get("prompt_tokens")
            self._completion_tokens = usage.get("completion_tokens")
        if not choices:
            return None
        choice = choices[0]
        if delta := choice.get("delta"):
            # vLLM renamed the field; versions in between send both.
            reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
            chunk = ChatChunk(_printable(delta.get("content") or ""), _printable(reasoning))
        else:
            chunk = ChatChunk(_printable(choice.get("text") or ""))
        if finish_reason := choice.get("finish_reason"):
            self.finish_reason = finish_reason
            # The end-of-text token is counted and takes its time, though it says nothing.
            self._last_s = now_s
        if not chunk.text and not chunk.reasoning:
            return None
        self._chunks += 1
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        if self._first_s is None:
            self._first_s = now_s
            self._first_tokens = usage.get("completion_tokens") if usage else None
        self._last_s = now_s
        return chunk

    def answer(self, *, cut: bool = False) -> Answer:
        """Return what it adds up to."""
        tokens = self._chunks if self._completion_tokens is None else self._completion_tokens
        duration_s = time.perf_counter() - self._begun_s
        tokens_per_s, is_overall = self._rate(tokens, duration_s)
        return Answer(
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            ttft_s=self._first_s,
            duration_s=duration_s,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=tokens,
            is_estimate=self._completion_tokens is None,
            tokens_per_s=tokens_per_s,
            finish_reason=self.finish_reason,
            cut=cut,
            is_overall_rate=is_overall,
        )

    def _rate(self, tokens: int, duration_s: float) -> tuple[float | None, bool]:
        if self._first_s is None or tokens < 1 or duration_s <= 0:
            return None, False
        writing_s = self._last_s - self._first_s
        rest = tokens - self._tokens_of_first_chunk(tokens)
        if self._chunks > 1 and writing_s >= MEASURABLE_S and rest > 0:
            return rest / writing_s, False
        return tokens / duration_s, True

    def _tokens_of_first_chunk(self, tokens: int) -> int:
        """Return how many tokens came with the first chunk: the engine's count, else by its part of the text."""
        if self._first_tokens is not None:
            return self._first_tokens
        lengths = [len(text) + len(thought) for text, thought in zip(self._text, self._reasoning, strict=True)]
        return max(1, round(tokens * lengths[0] / sum(lengths)))


def _printable(text: str) -> str:
    """Replace lone surrogates: JSON may hold them, no terminal and no later request can."""
    return text if text.isascii() else text.encode(errors="replace").decode()
