"""What stands on the terminal, cell by cell, so that only what differs is written.

Textual writes every region that a widget has refreshed, changed or not, and every attribute of every stretch of text.
Here the wanted picture is kept beside the shown one: a frame that changes nothing costs no byte, and where the
terminal is slower than the screen, a frame that was left out costs nothing either: the next one holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, get_character_cell_size
from rich.color import ColorSystem
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.strip import Strip

LEAST_GAP = 5
"""So many unchanged cells are skipped; fewer are written again, since moving the cursor takes as many bytes."""

SINGLE = re.compile(r"[\u0020-\u007e\u00a0-\u00ac\u00ae-\u02ff\u2010-\u2027\u2190-\u2193\u2200-\u22ff\u2500-\u25fc]*")
"""Text of nothing but characters of one cell each."""

_LINES = frozenset({"4", "5", "6", "7", "9", "21", "51", "52", "53"})
"""SGR codes that show on a space in the foreground's colour, or swap the colours."""

_CODE = re.compile(r"[34]8;(?:2;\d+;\d+;\d+|5;\d+)|\d+")


class Look:
    """A style as the terminal is told it: SGR codes of attributes and of both colours, and a link.

    `on_space` is what can be seen of it on a space, which has no foreground unless it is underlined or the like.
    """

    __slots__ = ("attributes", "background", "foreground", "link", "on_space")

    def __init__(self, ansi: str, link: str) -> None:
        codes = _CODE.findall(ansi)
        self.foreground = next((code for code in codes if _is_colour(code, "3", "9")), "")
        self.background = next((code for code in codes if _is_colour(code, "4", "10")), "")
        self.attributes = ";".join(code for code in codes if code not in (self.foreground, self.background))
        self.link = link
        lines = _LINES & set(self.attributes.split(";"))
        self.on_space = (self.background, link, self if lines else None)


PLAIN = Look("", "")


@dataclass(slots=True, eq=True)
class Row:
    """A line of cells: the character of each ("" in the rest of one that is wider than a cell), and its look.

    Two lists, and no pair for each cell: the garbage collector would look through thousands of pairs for each frame.
    """

    letters: list[str]
    looks: list[Look | None]

    def copy(self) -> Row:
        """Return a row of its own with the same cells."""
        return Row(self.letters.copy(), self.looks.copy())


class Painter:
    """Takes Textual's updates, and says what to write so that the terminal shows all that was taken."""

    def __init__(self, colours: ColorSystem) -> None:
        self._colours = colours
        self._looks: dict[tuple[str, str], Look] = {}
        self._wanted: list[Row] = []
        self._shown: list[Row] = []
        self._changed: set[int] = set()
        self._look_now: Look | None = None

    def resize(self, width: int, height: int) -> None:
        """Begin anew with another size, in cells; the same size changes nothing."""
        if len(self._wanted) != height or len(self._wanted[0].letters) != width:
            self._wanted = [Row([" "] * width, [PLAIN] * width) for _ in range(height)]
            self.forget()

    def forget(self) -> None:
        """Take it that somebody else has written to the terminal: everything is to be painted."""
        self._shown = [_unknown(len(row.letters)) for row in self._wanted]
        self._changed = set(range(len(self._wanted)))
        self._look_now = None

    def take(self, update: LayoutUpdate | ChopsUpdate) -> None:
        """Have the terminal show an update, once it is painted."""
        if isinstance(update, LayoutUpdate):
            for y, strips in enumerate(update.strips, update.region.y):
                x = update.region.x
                for strip in strips:
                    self._put(x, y, strip)
                    x += strip.cell_length
            return
        for y, first, last in update.spans:
            for end, (at, part) in zip(update.chop_ends[y], update.chops[y].items(), strict=False):
                if part is not None and at < last and end > first:
                    self._put(at, y, part if end <= last else part.crop(0, last - at))
                    # A strip that was not cut keeps itself as its only part: a cycle for the collector to find.
                    part._divide_cache.clear()

    @property
    def has_more(self) -> bool:
        """Whether there may be something left to paint."""
        return bool(self._changed)

    def paint(self, limit: int | None = None) -> str:
        """Return what brings the terminal from what it shows to what was taken; empty where that is the same.

        No line is begun once there are more than `limit` characters: what is left comes at the next time.
        """
        out: list[str] = []
        look = self._look_now
        for y in sorted(self._changed):
            if limit is not None and sum(map(len, out)) > limit:
                break
            self._changed.discard(y)
            wanted, shown = self._wanted[y], self._shown[y]
            if wanted == shown:
                continue
            for first, last in _differing(wanted, shown):
                out.append(f"\x1b[{y + 1};{first + 1}H")
                for text, its in zip(wanted.letters[first:last], wanted.looks[first:last], strict=True):
                    if look is not its and its is not None and not _same_space(text, look, its):
                        out.append(_turned(look, its))
                        look = its
                    out.append(text)
            self._shown[y] = wanted.copy()
        self._look_now = look
        return "".join(out)

    def _put(self, x: int, y: int, strip: Strip) -> None:
        if y >= len(self._wanted) or x >= len(self._wanted[y].letters):
            return  # Of a picture that was made before the terminal became smaller.
        row = self._wanted[y]
        letters: list[str] = []
        looks: list[Look | None] = []
        for text, style, _ in strip:
            parts = text if SINGLE.fullmatch(text) else _parts(text)
            letters.extend(parts)
            looks.extend([self._look(style)] * len(parts))
        del letters[len(row.letters) - x :]
        del looks[len(row.letters) - x :]
        end = x + len(letters)
        if row.letters[x:end] == letters and row.looks[x:end] == looks:
            return
        _cut(row, x)
        _cut(row, end)
        row.letters[x:end] = letters
        row.looks[x:end] = looks
        self._changed.add(y)

    def _look(self, style: Style | None) -> Look:
        if style is None:
            return PLAIN
        ansi = style._ansi
        key = (Strip.render_ansi(style, self._colours) if ansi is None else ansi, style.link or "")
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = Look(*key) if any(key) else PLAIN
        return look


def _unknown(width: int) -> Row:
    return Row([""] * width, [None] * width)


def _parts(text: str) -> Sequence[str]:
    """Split text into cells; what cannot be split surely (joined or combined characters) becomes one wide cell."""
    widths, whole = [get_character_cell_size(letter) for letter in text], cell_len(text)
    if all(widths) and sum(widths) == whole:
        return [part for letter, width in zip(text, widths, strict=True) for part in (letter, *[""] * (width - 1))]
    return (text, *[""] * (whole - 1)) if whole else ()


def _cut(row: Row, x: int) -> None:
    """Blank a character that lies across the left edge of cell `x`: one half of it cannot stand."""
    letters = row.letters
    if 0 < x < len(letters) and letters[x] == "":
        first = x
        while first > 0 and letters[first] == "":
            first -= 1
        while x < len(letters) and letters[x] == "":
            x += 1
        letters[first:x] = [" "] * (x - first)
        row.looks[first:x] = [row.looks[first]] * (x - first)


def _differing(wanted: Row, shown: Row) -> Iterator[tuple[int, int]]:
    """Yield what is to be written, as first cell and cell behind the last: whole characters, and no small gaps."""
    cells = enumerate(zip(wanted.letters, shown.letters, wanted.looks, shown.looks, strict=True))
    changed = [
        x
        for x, (text, other, look, its) in cells
        if text != other or (look is not its and not _same_space(text, look, its))
    ]
    first = last = -1
    for x in changed:
        if first >= 0 and x - last > LEAST_GAP:
            yield _whole(wanted.letters, shown.letters, first, last)
            first = x
        elif first < 0:
            first = x
        last = x
    if first >= 0:
        yield _whole(wanted.letters, shown.letters, first, last)


def _whole(wanted: list[str], shown: list[str], first: int, last: int) -> tuple[int, int]:
    """Widen a stretch until it cuts through no wide character, neither the new nor the old."""
    while first > 0 and "" in (wanted[first], shown[first]):
        first -= 1
    last += 1
    while last < len(wanted) and "" in (wanted[last], shown[last]):
        last += 1
    return first, last


def _same_space(text: str, now: Look | None, then: Look | None) -> bool:
    """Tell whether two looks of `text` cannot be told apart because it is a space."""
    return text == " " and now is not None and then is not None and now.on_space == then.on_space


def _turned(now: Look | None, then: Look) -> str:
    """Return the codes that turn a look (None: not known) into another: what differs, where no attribute goes."""
    link = "" if (now or PLAIN).link == then.link else f"\x1b]8;;{then.link}\x1b\\"
    if then is PLAIN:
        return f"{link}\x1b[m"
    if now is None:
        now = PLAIN
        link += "\x1b[m"
    if now.attributes in ("", then.attributes):
        codes = [
            "" if now.attributes else then.attributes,
            _colour(now.foreground, then.foreground, "39"),
            _colour(now.background, then.background, "49"),
        ]
    else:
        codes = ["0", then.attributes, then.foreground, then.background]
    said = ";".join(code for code in codes if code)
    return f"{link}\x1b[{said}m" if said else link


def _colour(now: str, then: str, none: str) -> str:
    return "" if now == then else then or none


def _is_colour(code: str, normal: str, bright: str) -> bool:
    return code.startswith(f"{normal}8;") or (
        len(code) > 1 and code[:-1] in (normal, bright) and code[-1] in "01234567"
    )
