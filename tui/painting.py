"""What stands on the terminal, cell by cell, so that only what differs is written.

Textual writes every region that a widget has refreshed, changed or not, and every attribute of every stretch of text.
Here the wanted picture is kept beside the shown one: a frame that changes nothing costs no byte, and where the
terminal is slower than the screen, a frame that was left out costs nothing either: the next one holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import repeat

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


Cell = tuple[str, Look | None]
"""A character and its look; the rest of a character that is wider than one cell is ""."""

PLAIN = Look("", "")
_BLANK: Cell = (" ", PLAIN)
_UNKNOWN: Cell = ("", None)


class Painter:
    """Takes Textual's updates, and says what to write so that the terminal shows all that was taken."""

    def __init__(self, colours: ColorSystem) -> None:
        self._colours = colours
        self._looks: dict[tuple[str, str], Look] = {}
        self._wanted: list[list[Cell]] = []
        self._shown: list[list[Cell]] = []
        self._changed: set[int] = set()
        self._look_now: Look | None = None

    def resize(self, width: int, height: int) -> None:
        """Begin anew with another size, in cells; the same size changes nothing."""
        if len(self._wanted) != height or len(self._wanted[0]) != width:
            self._wanted = [[_BLANK] * width for _ in range(height)]
            self.forget()

    def forget(self) -> None:
        """Take it that somebody else has written to the terminal: everything is to be painted."""
        self._shown = [[_UNKNOWN] * len(row) for row in self._wanted]
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
                for text, its in wanted[first:last]:
                    if look is not its and its is not None and not _same_space(text, look, its):
                        out.append(_turned(look, its))
                        look = its
                    out.append(text)
            self._shown[y] = wanted.copy()
        self._look_now = look
        return "".join(out)

    def _put(self, x: int, y: int, strip: Strip) -> None:
        if y >= len(self._wanted):
            return
        row = self._wanted[y]
        cells: list[Cell] = []
        for text, style, _ in strip:
            cells.extend(_cells(text, self._look(style)))
        del cells[len(row) - x :]
        end = x + len(cells)
        if row[x:end] == cells:
            return
        _cut(row, x)
        _cut(row, end)
        row[x:end] = cells
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


def _cells(text: str, look: Look) -> Iterator[Cell]:
    """Split text into cells; what cannot be split surely (joined or combined characters) becomes one wide cell."""
    if SINGLE.fullmatch(text):
        return zip(text, repeat(look))
    widths, whole = [get_character_cell_size(letter) for letter in text], cell_len(text)
    if all(widths) and sum(widths) == whole:
        letters = [part for letter, width in zip(text, widths, strict=True) for part in (letter, *[""] * (width - 1))]
        return zip(letters, repeat(look))
    return zip((text, *[""] * (whole - 1)) if whole else (), repeat(look))


def _cut(row: list[Cell], x: int) -> None:
    """Blank a character that lies across the left edge of cell `x`: one half of it cannot stand."""
    if 0 < x < len(row) and row[x][0] == "":
        first = x
        while first > 0 and row[first][0] == "":
            first -= 1
        while x < len(row) and row[x][0] == "":
            x += 1
        row[first:x] = [(" ", row[first][1])] * (x - first)


def _differing(wanted: list[Cell], shown: list[Cell]) -> Iterator[tuple[int, int]]:
    """Yield what is to be written, as first cell and cell behind the last: whole characters, and no small gaps."""
    pairs = enumerate(zip(wanted, shown, strict=True))
    changed = [
        x for x, (one, other) in pairs if one != other and not (one[0] == other[0] and _same_space(*other, one[1]))
    ]
    first = last = -1
    for x in changed:
        if first >= 0 and x - last > LEAST_GAP:
            yield _whole(wanted, shown, first, last)
            first = x
        elif first < 0:
            first = x
        last = x
    if first >= 0:
        yield _whole(wanted, shown, first, last)


def _whole(wanted: list[Cell], shown: list[Cell], first: int, last: int) -> tuple[int, int]:
    """Widen a stretch until it cuts through no wide character, neither the new nor the old."""
    while first > 0 and "" in (wanted[first][0], shown[first][0]):
        first -= 1
    last += 1
    while last < len(wanted) and "" in (wanted[last][0], shown[last][0]):
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
