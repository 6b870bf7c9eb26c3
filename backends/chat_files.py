"""A conversation as a file: Markdown to read, or JSON lines as fine-tuning takes them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from backends import paths
from backends.chat import content
from backends.chat_answer import Answer
from backends.chat_conversations import Conversation, Exchange
from backends.errors import UsageError

KINDS = {"md": "Markdown", "jsonl": "JSON lines"}


def save(name: str, text: str, kind: str, at: float) -> Path:
    """Write `text` into a new file of the user's `chats` folder and return its path; nothing is ever overwritten.

    `kind` is one of KINDS, `at` Unix seconds; the file's mode is 0600. It writes to the disk: call it off the event
    loop. Raises UsageError where it cannot be written.
    """
    stem = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-.")[:60] or "chat"
    moment = f"{datetime.fromtimestamp(at):%Y%m%d-%H%M%S}"
    try:
        folder = paths.private(paths.chat_dir())
        for number in range(1, 1000):
            path = folder / (f"{stem}-{moment}" + (f"-{number}" if number > 1 else "") + f".{kind}")
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                continue
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
            return path
    except OSError as error:
        raise UsageError(f"the chat cannot be saved in {paths.chat_dir()}: {error.strerror}", "see there") from error
    raise UsageError(f"there are too many files of {stem}", f"tidy {paths.chat_dir()}")


def as_text(conversation: Conversation, model: str, kind: str) -> str:
    """Return the conversation in one of KINDS; an answer that is being written as far as it is."""
    return as_markdown(conversation, model) if kind == "md" else as_jsonl(conversation, model)


def as_markdown(conversation: Conversation, model: str) -> str:
    """Return the conversation to be read: questions as headings, answers as the model wrote them, thoughts folded."""
    parts = [f"# {conversation.name}", f"{conversation.server} · {model}"]
    if told := conversation.sampling.told():
        parts.append(f"Settings: `{told}`")
    if conversation.system:
        parts.append("**System prompt**\n\n" + _quoted(conversation.system))
    for number, exchange in enumerate(conversation.exchanges, start=1):
        parts.append(f"## {number}. Question\n\n" + _quoted(exchange.prompt))
        if exchange.image is not None:
            size = f"{len(exchange.image.data) / 1024:,.0f} KiB"
            parts.append(f"Picture: {exchange.image.name} ({exchange.image.kind}, {size})")
        if exchange.reasoning:
            thoughts = exchange.reasoning.strip()
            parts.append(f"<details><summary>What it thought</summary>\n\n{thoughts}\n\n</details>")
        parts.append(f"## {number}. Answer\n\n{exchange.text.strip()}".rstrip())
        if said := _figures(exchange):
            parts.append(f"*{said}*")
    return "\n\n".join(parts) + "\n"


def as_jsonl(conversation: Conversation, model: str) -> str:
    """Return the conversation as one JSON object in one line, its `messages` as the OpenAI API and TRL take them.

    Beside them stand `server`, `model`, `sampling` and, for each answer, its figures.
    """
    messages: list[dict[str, object]] = []
    if conversation.system:
        messages.append({"role": "system", "content": conversation.system})
    figures = []
    for exchange in conversation.exchanges:
        messages.append({"role": "user", "content": content(exchange.prompt, exchange.image)})
        if exchange.text or exchange.answer is not None:
            messages.append({"role": "assistant", "content": exchange.text})
        figures.append(_facts(exchange))
    sampling = {name: value for name, value in asdict(conversation.sampling).items() if value not in (None, ())}
    line = {
        "messages": messages,
        "server": conversation.server,
        "model": model,
        "sampling": sampling,
        "answers": figures,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"


def _facts(exchange: Exchange) -> dict[str, object]:
    facts: dict[str, object] = {"asked_at": exchange.asked_at}
    if exchange.answer is not None:
        told = asdict(exchange.answer)
        del told["text"]
        facts |= told
    if exchange.problem is not None:
        facts["problem"] = exchange.problem.message
    return facts


def _figures(exchange: Exchange) -> str:
    parts = [exchange.problem.message] if exchange.problem is not None else []
    if exchange.answer is not None:
        parts.append(figures(exchange.answer))
    if exchange.was_stopped or (exchange.answer is not None and exchange.answer.cut):
        parts.append("not the whole answer")
    return " · ".join(parts)


def figures(answer: Answer) -> str:
    """Return an answer's figures in one line: 'TTFT 0.12 s · 103 tok/s · 48 tokens'."""
    parts = [f"TTFT {answer.ttft_s:.2f} s"] if answer.ttft_s is not None else []
    if answer.tokens_per_s is not None:
        parts.append(f"{answer.tokens_per_s:,.0f} tok/s{' overall' if answer.is_overall_rate else ''}")
    about = "~" if answer.is_estimate else ""
    parts.append(f"{about}{answer.completion_tokens:,} token" + ("" if answer.completion_tokens == 1 else "s"))
    return " · ".join(parts)


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())
