"""Answers that come fast: nothing of them is lost, their layout is that of the whole, and each frame takes a part."""

from __future__ import annotations

import random

import pytest

from tests.tui.chat_stage import chatting, end, greet, say
from tests.unit.chat_engine import Request, Script, Wire
from tui.themes import Palette
from tui.widgets.chat_exchange import FRAME_LETTERS
from tui.widgets.chat_markdown import PART_ITEMS, PART_LINES, MarkdownLines

COLOURS = Palette(*["#888888"] * 10)
WORDS = [f"word{number} " + ("\n\n" if number % 40 == 39 else "") for number in range(2000)]
CODE = [
    "```python\n",
    *(f"value_{number} = compute({number}, 'text')  # why\n" for number in range(400)),
    "```\n",
    "End.",
]
LIST = [f"{number}. item **{number}** of the `list`\n" for number in range(1, 301)]
TABLE = ["| a | b |\n|---|---|\n", *(f"| {number} | text |\n" for number in range(200))]


def laid_out(*pieces: str, width: int = 60) -> list[str]:
    lines = MarkdownLines(COLOURS, "#000000", is_dark=True)
    count = 0
    for piece in pieces:
        lines.write(piece)
        count = lines.lay_out(width)
    return [lines.line(number).text.rstrip() for number in range(count)]


MIXED = """# Title

Some *text* with `code` and <b>tags</b>, in
two lines.

- one
- two
  1. inner
  2. more

> quoted
> on

```python
def f() -> None:
    return None
```

| a | b |
|---|---|
| 1 | 2 |

~~~
no language
~~~

Last [link](http://x) line
===

1. x
1. y
"""


@pytest.mark.parametrize("seed", range(8))
def test_what_comes_in_pieces_looks_like_what_comes_at_once(seed: int) -> None:
    chance = random.Random(seed)
    cuts = sorted(chance.sample(range(1, len(MIXED)), 40))
    pieces = [MIXED[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(MIXED)], strict=True)]
    assert laid_out(*pieces) == laid_out(MIXED)


def test_all_of_a_text_is_shown_and_html_is_text() -> None:
    text = "\n".join(laid_out(MIXED))
    for part in ("Title", "<b>tags</b>", "• one", "1 inner", "▌ quoted", "def f() -> None:", "no language", "2 y"):
        assert part in text
    assert "```" not in text


def test_long_blocks_are_finished_in_parts_and_lose_nothing() -> None:
    code = laid_out(*("".join(CODE[begin : begin + 9]) for begin in range(0, len(CODE), 9)))
    assert [line.strip() for line in code if "value_" in line] == [line.strip() for line in CODE[1:401]]
    assert code[:400] == [line for line in code[:400] if line], "no gaps between the parts"
    numbers = [
        line.split()[0] for line in laid_out(*("".join(LIST[begin : begin + 7]) for begin in range(0, len(LIST), 7)))
    ]
    assert numbers == [str(number) for number in range(1, 301)]
    assert len(LIST) > 10 * PART_ITEMS
    # Many write the same number before each item.
    assert [line.split()[0] for line in laid_out(*(f"1. item {number}\n" for number in range(30)))] == [
        str(number) for number in range(1, 31)
    ]
    rows = [line.split() for line in laid_out("".join(TABLE[:150]), *TABLE[150:]) if "text" in line]
    assert [int(row[0]) for row in rows] == list(range(200))
    assert len(TABLE) > 4 * PART_LINES


def test_another_width_lays_all_of_it_out_anew() -> None:
    lines = MarkdownLines(COLOURS, "#000000", is_dark=True)
    lines.write("".join(WORDS))
    wide, narrow = lines.lay_out(100), lines.lay_out(30)
    assert narrow > 2 * wide
    assert max(lines.line(number).cell_length for number in range(narrow)) <= 30
    assert lines.lay_out(100) == wide


def flood(pieces: list[str], count: int) -> Script:
    async def script(request: Request, wire: Wire) -> None:
        await wire.begin()
        await say(wire, *pieces, batch=20)
        await end(wire, count)

    return script


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many letters were laid out at a time."""
    letters: list[int] = []
    write = MarkdownLines.write

    def noting(lines: MarkdownLines, text: str) -> None:
        letters.append(len(text))
        write(lines, text)

    monkeypatch.setattr(MarkdownLines, "write", noting)
    return letters


@pytest.mark.parametrize("pieces", [WORDS, CODE, LIST, TABLE], ids=["words", "code", "list", "table"])
async def test_a_flood_is_shown_whole_a_bounded_part_of_it_in_each_frame(pieces: list[str], drawn: list[int]) -> None:
    async with chatting(greet, size=(120, 40)) as chat:
        await chat.answered("hi", 1)
        chat.engine.script = flood(pieces, len(pieces))
        drawn.clear()
        await chat.ask("go")
        await chat.until(lambda: len(chat.views) == 2 and chat.views[-1].is_complete, "the flood's end")
        assert chat.answer == "".join(pieces)
        assert sum(drawn) == len("".join(pieces))
        assert max(drawn) <= FRAME_LETTERS
