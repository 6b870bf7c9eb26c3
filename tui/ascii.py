"""One-cell ASCII for every glyph that is drawn, for terminals that show nothing else.

Bars stay honest: of two partial blocks the fuller one is the denser sign, and no partial one looks like a full one.
"""

from __future__ import annotations

import locale
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from backends.settings import Ascii

POOR_TERMINALS = frozenset({"", "dumb", "unknown", "linux", "ansi", "cons25"})
POOR_FAMILIES = ("vt",)
DENSITY = "_.:-=+*"
"""From one eighth to seven eighths of a cell; a whole one is '#', none a blank."""

TABLE: dict[int, str] = str.maketrans(
    {
        # Blocks: from below, then from the left.
        **dict(zip("▁▂▃▄▅▆▇", DENSITY, strict=True)),
        **dict(zip("▏▎▍▌▋▊▉", "|" + DENSITY[1:], strict=True)),
        **dict(zip("█▓▒░", "#@%:", strict=True)),
        **dict.fromkeys("▔▀", "-"),
        **dict.fromkeys("▐▕", "|"),
        **dict.fromkeys("▖▗▘▝", "."),
        **dict.fromkeys("▙▛▜▟▚▞", "+"),
        # Lines: heavy ones are what bars are filled with, light ones their track.
        "━": "#",
        **dict.fromkeys("╸╺╾╼", "="),
        **dict.fromkeys("─╌╴╶", "-"),
        **dict.fromkeys("┈┄┉┅╍", "."),
        "═": "=",
        **dict.fromkeys("│┃║┆┊┇┋╎╏╵╷╹╻‖", "|"),
        **dict.fromkeys("┌┐└┘┏┓┗┛├┤┬┴┼┣┫┳┻╋╔╗╚╝╠╣╦╩╬╭╮╯╰┠┨┯┷┿╂", "+"),
        "╱": "/",
        "╲": "\\",
        "╳": "X",
        # The states of servers, each another sign.
        "○": "o",
        "●": "*",
        "◐": "(",
        "◑": ")",
        "◒": "_",
        "◓": "^",
        "◌": ":",
        "↻": "&",
        **dict.fromkeys("✗✘✕✖☒", "x"),
        **dict.fromkeys("✓✔☑", "v"),
        "☐": "o",
        **dict.fromkeys("⚠", "!"),
        "⊘": "/",
        "⏸": "=",
        "⏎": "<",
        "◆": "*",
        "◇": "o",
        **dict.fromkeys("■▮▣", "#"),
        "✎": "~",
        **dict.fromkeys("□▯", "o"),
        # Arrows and triangles.
        **dict.fromkeys("↑▲△▴⇡⇧⬆", "^"),
        **dict.fromkeys("↓▼▽▾⇣⬇", "v"),
        **dict.fromkeys("←◀◁◂⇠⬅‹", "<"),
        **dict.fromkeys("→▶▷▸►⇢➜➤❯›", ">"),
        **dict.fromkeys("↵↩⤶", "<"),
        **dict.fromkeys("↗↘↖↙", "/"),
        **dict.fromkeys("↔⇄⇆", "-"),
        **dict.fromkeys("↕⇅", "|"),
        # Letters and figures.
        "…": "~",
        **dict.fromkeys("–—−‑‐", "-"),
        **dict.fromkeys("·•∙⋅‧", "."),
        "×": "x",
        "÷": "/",
        "°": "o",
        "µ": "u",
        "μ": "u",
        "σ": "s",
        "Σ": "S",
        "Δ": "D",
        "±": "+",
        "≈": "~",
        "≠": "#",
        "≤": "<",
        "≥": ">",
        "∞": "8",
        "√": "v",
        **dict.fromkeys("‘’‚′", "'"),
        **dict.fromkeys("“”„″«»", '"'),
        **dict.fromkeys("\u00a0\u2007\u2009\u202f\u2002\u2003", " "),
    }
)


def to_ascii(text: str) -> str:
    """Translate text into ASCII that takes as many cells: what is not known becomes '?', a letter loses its accents."""
    if text.isascii():
        return text
    cells = cell_len(text)
    # Signs that join or combine take fewer cells together than one by one.
    return "".join(_signs(text)).ljust(cells)[:cells]


def _signs(text: str) -> Iterator[str]:
    for sign in text:
        if sign.isascii():
            yield sign
        elif ord(sign) in TABLE:
            yield TABLE[ord(sign)]
        elif "\u2800" <= sign <= "\u28ff":
            yield _braille(ord(sign) - 0x2800)
        else:
            plain = unicodedata.normalize("NFD", sign)[0]
            yield plain if plain.isascii() and cell_len(sign) == 1 else "?" * cell_len(sign)


def _braille(dots: int) -> str:
    """Say by a sign where in its cell a curve is: above, below, or in both halves; the more dots, the denser."""
    above, below = (dots & 0b0001_1011).bit_count(), (dots & 0b1110_0100).bit_count()
    if not above or not below:
        return ' \'"""'[above] if above else " .__="[below]
    return ":" if above + below < 6 else "#"


class AsciiFilter(LineFilter):
    """Makes ASCII of every line that is drawn, just before it goes to the terminal."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Translate the text of segments; styles and widths stay."""
        return [
            segment if segment.text.isascii() else Segment(to_ascii(segment.text), segment.style, segment.control)
            for segment in segments
        ]


@dataclass(frozen=True, slots=True)
class Terminal:
    """What is known of the terminal: the environment it set, and the encoding of the locale."""

    environ: Mapping[str, str]
    encoding: str

    @property
    def is_poor(self) -> bool:
        """Whether it shows nothing but ASCII, as far as TERM and the locale tell."""
        kind = self.environ.get("TERM", "")
        if kind in POOR_TERMINALS or kind.startswith(POOR_FAMILIES):
            return True
        return "utf8" not in self._codeset.lower().replace("-", "")

    @property
    def _codeset(self) -> str:
        # Where no locale is set at all, Python takes C.UTF-8 and notes that in LC_CTYPE: a container without locales
        # says nothing about the terminal that looks at it, and terminals without UTF-8 are rare.
        ctype = self.environ.get("LC_CTYPE", "")
        named = self.environ.get("LC_ALL") or (ctype if ctype != "C.UTF-8" else "") or self.environ.get("LANG") or ctype
        if not named:
            return "utf8"
        if named in ("C", "POSIX"):
            return "ascii"
        return named.partition(".")[2].partition("@")[0] or self.encoding


def wants_ascii(setting: Ascii, environ: Mapping[str, str], *, has_terminal: bool) -> bool:
    """Decide whether to draw in ASCII: `GPUBOX_ASCII` (1 or 0) first, then the setting, then what the terminal can."""
    if asked := environ.get("GPUBOX_ASCII"):
        return asked.lower() not in ("0", "false", "no", "off")
    if isinstance(setting, bool):
        return setting
    return has_terminal and Terminal(environ, locale.getencoding()).is_poor
