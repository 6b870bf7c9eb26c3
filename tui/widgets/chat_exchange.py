"""One question and its answer on screen; it catches up with its exchange when it is asked to."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Markdown, Static
from textual.widgets.markdown import MarkdownStream

from backends.chat import Answer, Embedding
from backends.snapshots import ModelKind
from tui.format import count, duration
from tui.themes import Palette, palette
from tui.widgets.chat_conversations import Exchange

THOUGHT_LINES = 3


class ExchangeView(Vertical):
    """The question, what the model thought (folded once it writes), its answer, and the timings below."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.shows_thoughts = False
        self._stream: MarkdownStream | None = None
        self._written = 0
        self.is_complete = False

    def compose(self) -> ComposeResult:
        """Make the parts."""
        if self.exchange.kind is not ModelKind.COMPLETION:
            yield Static(Text(self.exchange.prompt), classes="prompt")
        yield Static(classes="thoughts")
        if self.exchange.kind is ModelKind.COMPLETION:
            yield Static(classes="continued")
        else:
            yield Markdown(open_links=False, classes="answer")
        yield Static(classes="foot")

    async def catch_up(self, now: float) -> None:
        """Show what has come since; called on the UI loop, as often as one wants to see."""
        if self.is_complete:
            return
        exchange, colours = self.exchange, palette(self.app)
        ended = not exchange.is_open  # Read first: what follows then shows all of it.
        self.show_thoughts()
        more = exchange.text[self._written :]
        if more:
            self._written += len(more)
            await self._write(more)
        if ended:
            await self.rest()
            self.is_complete = True
        self.query_one(".foot", Static).update(foot(exchange, now, colours))

    async def rest(self) -> None:
        """Let go of the stream: all that was written to it is shown when this returns."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.stop()

    async def on_unmount(self) -> None:
        """Leave no task behind."""
        await self.rest()

    def show_thoughts(self, *, whole: bool | None = None) -> None:
        """Show the newest lines of what the model thinks; once it writes, one line that says so, or all of it."""
        if whole is not None:
            self.shows_thoughts = whole
        thoughts = self.query_one(".thoughts", Static)
        reasoning = self.exchange.reasoning.strip()
        thoughts.display = bool(reasoning)
        if not reasoning:
            return
        if self.shows_thoughts:
            thoughts.update(Text(reasoning))
        elif self.exchange.is_open and not self.exchange.text:
            thoughts.update(Text("\n".join(reasoning.splitlines()[-THOUGHT_LINES:])))
        else:
            words = count(len(reasoning.split()))
            thoughts.update(Text(f"▸ it thought in {words} words · Ctrl+T shows them"))

    async def _write(self, more: str) -> None:
        if self.exchange.kind is ModelKind.COMPLETION:
            text = Text.assemble((self.exchange.prompt, "bold"), self.exchange.text)
            self.query_one(".continued", Static).update(text)
            return
        if self._stream is None:
            self._stream = Markdown.get_stream(self.query_one(Markdown))
        await self._stream.write(more)


def foot(exchange: Exchange, now: float, colours: Palette) -> Text:
    """Say how it stands with an answer: how long it is waited for, its timings, or what went wrong."""
    text = Text()
    if exchange.is_open:
        what = "writing" if exchange.text else "thinking" if exchange.reasoning else "waiting for the first token"
        return text.append(f"{what} · {duration(now - exchange.asked_at)} · Esc stops it", colours.dim)
    if exchange.problem is not None:
        text.append(f"✗ {exchange.problem.message}", colours.bad)
        if exchange.problem.hint:
            text.append(f" · {exchange.problem.hint}", colours.dim)
    if exchange.answer is not None:
        text.append("\n" if text else "").append(timings(exchange.answer), colours.dim)
    if exchange.embedding is not None:
        text.append_text(embedded(exchange.embedding, colours))
    if exchange.was_stopped:
        text.append(" · stopped" if text else "stopped before it began", colours.warn)
    elif exchange.answer is not None and exchange.answer.finish_reason == "length":
        text.append(" · ended by the token limit", colours.warn)
    return text


def timings(answer: Answer) -> str:
    """Return an answer's figures: 'TTFT 0.12 s · 103 tok/s · 48 tokens (25 in the prompt) · 0.6 s'."""
    parts = []
    if answer.ttft_s is not None:
        parts.append(f"TTFT {answer.ttft_s:.2f} s")
    if answer.tokens_per_s is not None:
        parts.append(f"{count(answer.tokens_per_s)} tok/s")
    about = "~" if answer.is_estimate else ""
    tokens = f"{about}{answer.completion_tokens:,} token" + ("" if answer.completion_tokens == 1 else "s")
    if answer.prompt_tokens is not None:
        tokens += f" ({answer.prompt_tokens:,} in the prompt)"
    return " · ".join([*parts, tokens, f"{answer.duration_s:.1f} s"])


def embedded(embedding: Embedding, colours: Palette) -> Text:
    """Say what an embedding model made of a text."""
    first = ", ".join(f"{value:.4f}" for value in embedding.first)
    return Text.assemble(
        (f"{embedding.dimensions:,} dimensions · norm {embedding.norm:.4f}\n", colours.text),
        (f"{first}, …\n", colours.dim),
        (f"{embedding.prompt_tokens:,} tokens · {embedding.duration_s:.2f} s", colours.dim),
    )
