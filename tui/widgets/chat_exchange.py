"""One question and its answer on screen, drawn line by line; it catches up with its exchange when it is asked to."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from backends.chat_answer import Answer, Embedding
from backends.chat_conversations import Exchange
from backends.chat_image import Image
from backends.snapshots import ModelKind
from tui.format import count, duration
from tui.keymap import KeyNames, key_of
from tui.themes import Palette, palette
from tui.widgets.chat_markdown import MarkdownLines, plain_lines

THOUGHT_LINES = 3
WIDEST_CELLS = 120
"""Longer lines are hard to read."""

FRAME_LETTERS = 2000
"""What is drawn at a time of an answer that is being written: at 10 frames a second some 5,000 tokens a second."""

INDENT = "  "
BAR, MARK = "▌ ", "▶ "
"""Stand before a question, and before the one that is chosen."""


class ExchangeView(Widget):
    """The question, what the model thought (folded once it writes), its answer, and the timings below.

    It is one widget and no container: a hundred of them in a conversation cost no more than a hundred lines do.
    """

    ALLOW_SELECT = True

    def __init__(self, exchange: Exchange, area: str = "chat") -> None:
        """`area` is what the ids of the screen's bindings begin with: it names their keys."""
        super().__init__()
        self.exchange = exchange
        self._area = area
        self.shows_thoughts = False
        self.is_marked = False
        self.is_complete = False
        self.thoughts = ""
        self.foot = Text()
        self._answer: MarkdownLines | None = None
        self._written = self._due = 0
        self._is_live = exchange.is_open
        self._is_stale = True
        self._above: list[Strip] = []
        self._below: list[Strip] = []
        self._width = 0
        self._lines = 0
        self._style = Style()

    def on_mount(self) -> None:
        """Draw anew what has colours of its own."""
        self.watch(self.app, "theme", self._repaint, init=False)

    def _repaint(self) -> None:
        self._answer, self._written, self._width, self._is_live = None, 0, 0, False
        self.is_complete = False
        self.refresh(layout=True)

    def catch_up(self, now: float) -> None:
        """Show what has come since; called on the UI loop, as often as one wants to see."""
        if self.is_complete:
            return
        exchange = self.exchange
        ended = not exchange.is_open  # Read first: what follows then shows all of it.
        thoughts = told_thoughts(exchange, self._key, whole=self.shows_thoughts)
        said = foot(exchange, now, palette(self.app), self._key)
        grew = len(exchange.text) > self._written
        self._due = min(len(exchange.text), self._written + FRAME_LETTERS)
        if grew or thoughts != self.thoughts or said != self.foot:
            self.thoughts, self.foot = thoughts, said
            self._redraw()
        self.is_complete = ended and self._written == len(exchange.text)

    def mark(self, *, marked: bool) -> None:
        """Show or end showing that this question is the one that is chosen."""
        if marked != self.is_marked:
            self.is_marked = marked
            self._redraw()

    def show_thoughts(self, *, whole: bool) -> None:
        """Show all that the model thought before it answered, or one line that says so."""
        self.shows_thoughts = whole
        self.thoughts = told_thoughts(self.exchange, self._key, whole=whole)
        self._redraw()

    def _key(self, verb: str) -> str:
        return key_of(self.app, f"{self._area}.{verb}", typing=True)

    def _redraw(self) -> None:
        lines, self._is_stale = self._lines, True
        layout = not self._width or self._lay_out(self._width) != lines
        self.call_later(self.refresh, layout=layout)  # What waits by now comes between laying out and drawing.

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return how many lines it takes."""
        return self._lay_out(width)

    def _lay_out(self, width: int) -> int:
        colours = palette(self.app)
        if width != self._width or self._is_stale:
            self._width, self._style, self._is_stale = width, self.rich_style, False
            self._above = self._drawn_above(width, colours)
            self._below = [Strip([Segment(INDENT), *strip]) for strip in plain_lines(self.foot, width - len(INDENT))]
        if self._answer is None:
            self._answer = MarkdownLines(colours, self._code_background, is_dark=self.app.current_theme.dark)
        text = self.exchange.text
        # What has come since the frame began waits for the next: it would have the last block laid out once more.
        written = self._due if self._is_live else len(text)
        if self.exchange.kind is not ModelKind.COMPLETION:
            self._answer.write(text[self._written : written])
        self._written = written
        answer = self._answer.lay_out(max(1, min(width - len(INDENT), WIDEST_CELLS)))
        self._lines = len(self._above) + answer + len(self._below)
        return self._lines

    @property
    def _code_background(self) -> str:
        return self.app.theme_variables["panel"]

    def _drawn_above(self, width: int, colours: Palette) -> list[Strip]:
        exchange = self.exchange
        if exchange.kind is ModelKind.COMPLETION:
            text = Text.assemble((exchange.prompt, f"bold {colours.text}"), (exchange.text, colours.text))
            return _prefixed(plain_lines(text, width - len(BAR)), MARK if self.is_marked else INDENT, colours.accent)
        question = Text(exchange.prompt, f"bold {colours.text}")
        if exchange.image is not None:
            question.append(f"\n{pictured(exchange.image)}", colours.dim)
        lead = MARK if self.is_marked else BAR
        strips = _prefixed(plain_lines(question, width - len(BAR)), lead, colours.accent)
        if self.thoughts:
            thoughts = Text(self.thoughts, f"italic {colours.dim}")
            strips += _prefixed(plain_lines(thoughts, width - len(INDENT)), INDENT, colours.dim)
        return strips

    def render_line(self, y: int) -> Strip:
        """Draw one line."""
        strip = self._line(y)
        if (selection := self.text_selection) is not None and (span := selection.get_span(y)) is not None:
            begin, end = span
            end = strip.cell_length if end == -1 else end
            chosen = self.screen.get_component_rich_style("screen--selection")
            before, middle, after = strip.divide([begin, end, max(end, strip.cell_length)])
            strip = Strip.join([before, middle.apply_style(chosen), after])
        style = self._style
        return strip.apply_style(style).adjust_cell_length(self.size.width, style).apply_offsets(0, y)

    def _line(self, y: int) -> Strip:
        above, lines = len(self._above), self._lines - len(self._below)
        if y < above:
            return self._above[y]
        if y < lines and self._answer is not None:
            return Strip([Segment(INDENT), *self._answer.line(y - above)])
        return self._below[y - lines] if y < self._lines else Strip([])

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """Return the text that was selected with the mouse."""
        return selection.extract("\n".join(self._line(y).text.rstrip() for y in range(self._lines))), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        """Show what is selected."""
        self.refresh()

    @property
    def answer(self) -> str:
        """What is shown of the answer, as the model wrote it."""
        return self.exchange.text[: self._written]


def _prefixed(strips: list[Strip], lead: str, colour: str) -> list[Strip]:
    style = Style.parse(colour)
    return [Strip([Segment(lead, style), *strip]) for strip in strips]


def pictured(image: Image) -> str:
    """Name a picture, with its size."""
    return f"▣ {image.name} ({len(image.data) / 1024:,.0f} KiB)"


def told_thoughts(exchange: Exchange, key: KeyNames, *, whole: bool) -> str:
    """Return the newest lines of what the model thinks; once it writes, one line that says so, or all of it."""
    reasoning = exchange.reasoning.strip()
    if not reasoning or whole:
        return reasoning
    if exchange.is_open and not exchange.text:
        return "\n".join(reasoning[-1000:].splitlines()[-THOUGHT_LINES:])
    if exchange.is_open:
        return f"▸ it thought first · {key('thoughts')} shows what"
    return f"▸ it thought in {count(len(reasoning.split()))} words · {key('thoughts')} shows them"


def foot(exchange: Exchange, now: float, colours: Palette, key: KeyNames) -> Text:
    """Say how it stands with an answer: how long it is waited for, its timings, or what went wrong."""
    text = Text()
    if exchange.is_open:
        what = "writing" if exchange.text else "thinking" if exchange.reasoning else "waiting for the first token"
        return text.append(f"{what} · {duration(now - exchange.asked_at)} · {key('stop')} stops it", colours.dim)
    if exchange.problem is not None:
        text.append(f"✗ {exchange.problem.message}", colours.bad)
        if exchange.problem.hint:
            text.append(f" · {exchange.problem.hint}", colours.dim)
        text.append(f" · {key('again')} asks again", colours.dim)
    if exchange.answer is not None:
        text.append("\n" if text else "").append(timings(exchange.answer), colours.dim)
    if exchange.embedding is not None:
        text.append_text(embedded(exchange.embedding, colours))
    if exchange.was_stopped:
        text.append(" · stopped" if text else "stopped before it began", colours.warn)
    elif exchange.answer is not None and exchange.answer.finish_reason == "length":
        text.append(" · ended by the token limit", colours.warn)
    if len(exchange.attempts) > 1:
        number = exchange.attempts.index(exchange) + 1
        text.append(f" · answer {number} of {len(exchange.attempts)}", colours.accent)
    return text


def timings(answer: Answer) -> str:
    """Return an answer's figures: 'TTFT 0.12 s · 103 tok/s · 48 tokens (25 in the prompt) · 0.6 s'.

    'overall' after the rate says that it is not the decode rate: the answer came in one burst.
    """
    parts = []
    if answer.ttft_s is not None:
        parts.append(f"TTFT {answer.ttft_s:.2f} s")
    if answer.tokens_per_s is not None:
        parts.append(f"{count(answer.tokens_per_s)} tok/s{' overall' if answer.is_overall_rate else ''}")
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
