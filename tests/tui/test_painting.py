"""What is written to the terminal: played back on a small one it is the wanted picture, and nothing is superfluous."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Sequence

import pytest
from rich.cells import cell_len
from rich.color import ColorSystem
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from tui.painting import Painter

WIDTH, HEIGHT = 12, 3
TOKEN = re.compile(r"\x1b\[(\d+);(\d+)H|\x1b\[([\d;]*)m|\x1b\]8;;([^\x1b]*)\x1b\\|([^\x1b])", re.DOTALL)


class Paper:
    """A terminal as far as the painter needs one: a cell is its text and all that its style says."""

    def __init__(self) -> None:
        self.cells = [[("?", "")] * WIDTH for _ in range(HEIGHT)]
        self._x = self._y = 0
        self._style: dict[str, str] = {}

    def feed(self, said: str) -> None:
        assert "".join(match[0] for match in TOKEN.finditer(said)) == said
        for match in TOKEN.finditer(said):
            line, column, codes, link, letter = match.groups()
            if line:
                self._y, self._x = int(line) - 1, int(column) - 1
            elif codes is not None:
                self._turn(codes)
            elif link is not None:
                self._style["link"] = link
            else:
                self._write(letter)

    def _turn(self, codes: str) -> None:
        for code in re.findall(r"[34]8;2;\d+;\d+;\d+|\d+", codes) or ["0"]:
            if code == "0":
                self._style = {"link": self._style.get("link", "")}
            else:
                colour = "fg" if code.startswith("38;") or code == "39" else "bg"
                is_colour = code[:3] in ("38;", "48;") or code in ("39", "49")
                self._style[colour if is_colour else code] = "" if code in ("39", "49") else code

    def _write(self, letter: str) -> None:
        seen = {key: value for key, value in sorted(self._style.items()) if value}
        if letter == " " and not {"4", "7", "9"} & seen.keys():
            seen = {key: value for key, value in seen.items() if key in ("bg", "link")}
        for cell in (letter, *[""] * (cell_len(letter) - 1)):
            self.cells[self._y][self._x] = (cell, str(seen))
            self._x += 1


def update(*rows: Strip, x: int = 0, y: int = 0) -> LayoutUpdate:
    width = max(row.cell_length for row in rows)
    return LayoutUpdate([[row] for row in rows], Region(x, y, width, len(rows)))


def line(*parts: tuple[str, str]) -> Strip:
    return Strip([Segment(text, Style.parse(style)) for text, style in parts])


def painter() -> Painter:
    made = Painter(ColorSystem.TRUECOLOR)
    made.resize(WIDTH, HEIGHT)
    return made


def painted_anew(rows: Sequence[Strip]) -> list[list[tuple[str, str]]]:
    whole, paper = painter(), Paper()
    whole.take(update(*rows))
    paper.feed(whole.paint())
    return paper.cells


STYLES = ("", "bold", "#ff0000 on #000010", "#ff0000 on #000020", "underline", "reverse #00ff00", "on #202020", "dim")
TEXTS = ("abcdef", "   ", "x", "日本", "█▌ ", "°C 47", "日 x")


@pytest.mark.parametrize("seed", range(20))
def test_pictures_one_after_the_other_are_the_same_as_each_painted_anew(seed: int) -> None:
    dice = random.Random(seed)

    def some_line() -> Strip:
        parts: list[tuple[str, str]] = []
        while (room := WIDTH - sum(cell_len(text) for text, _ in parts)) > 0:
            text = dice.choice(TEXTS)
            parts.append((text if cell_len(text) <= room else " " * room, dice.choice(STYLES)))
        return line(*parts)

    one, paper = painter(), Paper()
    rows = [some_line() for _ in range(HEIGHT)]
    for _ in range(30):
        rows[dice.randrange(HEIGHT)] = some_line()
        one.take(update(*rows))
        if dice.random() < 0.6:  # the others are left out, as on a slow terminal
            paper.feed(one.paint())
            assert paper.cells == painted_anew(rows)


def test_the_same_picture_again_writes_nothing() -> None:
    one = painter()
    rows = [line(("some text   ", "#ff0000 on #000010"))] * HEIGHT
    one.take(update(*rows))
    assert one.paint()
    one.take(update(*[line(("some text   ", "#ff0000 on #000010"))] * HEIGHT))
    assert one.paint() == ""


def test_only_what_differs_is_written() -> None:
    one = painter()
    one.take(update(*[line(("used 12 GiB ", "#ff0000 on #000010"))] * HEIGHT))
    one.paint()
    one.take(update(line(("used 13 GiB ", "#ff0000 on #000010"))))
    assert one.paint() == "\x1b[1;7H3"


def test_a_colour_that_nobody_sees_is_not_written() -> None:
    one = painter()
    one.take(update(line((" " * WIDTH, "#ff0000 on #000010"))))
    one.paint()
    one.take(update(line((" " * WIDTH, "#00ff00 on #000010"))))
    assert one.paint() == ""
    one.take(update(line((" " * WIDTH, "underline #00ff00 on #000010"))))
    assert one.paint() != ""


def test_half_a_wide_character_is_never_left() -> None:
    one, paper = painter(), Paper()
    one.take(update(line(("日本語 rest ", ""))))
    paper.feed(one.paint())
    one.take(update(line(("xyz", "")), x=1))
    paper.feed(one.paint())
    assert "".join(text for text, _ in paper.cells[0]) == " xyz語 rest "


def test_what_somebody_else_has_spoilt_is_painted_in_full() -> None:
    one, paper = painter(), Paper()
    rows = [line(("some text   ", "bold")), line(("日本語      ", "")), line((" " * WIDTH, "on #101010"))]
    one.take(update(*rows))
    one.paint()
    one.forget()
    paper.feed(one.paint())
    assert paper.cells == painted_anew(rows)


def test_a_picture_painted_in_parts_is_whole_and_its_newest_lines_are_painted() -> None:
    one, paper = painter(), Paper()
    first, newest = line(("first       ", "bold")), line(("newest 日本 ", "on #101010"))
    one.take(update(first, first, first))
    paper.feed(one.paint(1))
    assert one.has_more
    one.take(update(newest, newest, newest))
    while one.has_more:
        part = one.paint(1)
        assert part.count("H") == 1
        paper.feed(part)
    assert paper.cells == painted_anew([newest, newest, newest])


def test_a_frame_that_was_taken_leaves_nothing_to_the_garbage_collector() -> None:
    strip = line(("a whole line", ""))
    chops = [dict(enumerate(strip.divide([WIDTH])))]
    assert chops[0][0] is strip, "as Textual cuts what covers a line: such a strip keeps itself"
    gc.disable()
    try:
        painter().take(ChopsUpdate(chops, [(0, 0, WIDTH)], [[WIDTH]]))
        del strip, chops
        assert not [one for one in gc.get_objects() if isinstance(one, Strip) and one.text == "a whole line"]
    finally:
        gc.enable()


@pytest.mark.parametrize("x", [0, WIDTH - 2, WIDTH, WIDTH + 5])
def test_what_was_made_for_a_larger_terminal_is_cut(x: int) -> None:
    one, paper = painter(), Paper()
    rows = [line(("some text   ", ""))] * HEIGHT
    one.take(update(*rows))
    paper.feed(one.paint())
    one.take(LayoutUpdate([[line(("x" * 4, "")), line(("y" * WIDTH, ""))]], Region(x, 0, WIDTH + 4, 1)))
    one.take(update(*rows, y=HEIGHT))
    paper.feed(one.paint())
    shown = ("some text   "[:x] + "xxxx" + "y" * WIDTH)[:WIDTH] if x < WIDTH else "some text   "
    assert "".join(letter for letter, _ in paper.cells[0]) == shown
