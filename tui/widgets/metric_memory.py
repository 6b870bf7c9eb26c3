"""A server's memory as a stacked bar with its numbers in GiB; any screen can mount it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Static

from backends.memory import Division, Kind
from backends.snapshots import Missing
from tui.format import NOTHING, fit, gib
from tui.themes import Palette, palette

FILLS = {
    Kind.WEIGHTS: ("█", "primary"),
    Kind.KV_CACHE: ("▓", "accent"),
    Kind.GRAPHS: ("▚", "secondary"),
    Kind.ACTIVATION: ("▒", "good"),
    Kind.OTHER: ("░", "warn"),
}
"""Each use's pattern and the name of its colour: one tells them apart without the other."""

OTHERS = ("×", "dim")


class MetricMemory(Static):
    """Two lines: the bar of the fullest GPU or of one that was chosen, and what each pattern stands for."""

    DEFAULT_CSS = "MetricMemory { height: 2; }"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._gpu: int | None = None
        self._divided: Sequence[Division] = ()

    @property
    def has_several(self) -> bool:
        """Whether there is another GPU to look at."""
        return len(self._divided) > 1

    def show(self, divided: Sequence[Division], width: int) -> None:
        """Show the GPU that was chosen, else the fullest of a server's: the others are as it is, or less full."""
        self._divided = divided
        chosen = next((one for one in divided if one.gpu == self._gpu), None) if self.has_several else None
        one = chosen or fullest(divided)
        which = "" if not self.has_several else "one" if chosen else "fullest"
        self.update(memory_lines(one, width, palette(self.app), which and f"{which} of {len(divided)} GPUs"))

    def step(self) -> None:
        """Choose the next GPU, after the last one the fullest again; the next showing draws it."""
        gpus = [one.gpu for one in self._divided]
        self._gpu = (*gpus, None)[gpus.index(self._gpu) + 1] if self._gpu in gpus else gpus[0]


def fullest(divided: Sequence[Division]) -> Division:
    """Return the one with most memory held; those that do not tell come last."""
    return max(divided, key=lambda one: -1 if isinstance(one.held_bytes, Missing) else one.held_bytes)


def memory_lines(division: Division, width: int, colours: Palette, which: str = "") -> Text:
    """Draw the bar up to the GPU's memory, and its legend; `which` says which of a server's GPUs it is."""
    place = "host" if division.gpu is None else f"GPU {division.gpu}"
    label = f"{place}, {which} " if which else f"{place} "
    total = division.total_bytes
    told = "" if isinstance(total, Missing) else f" {gib(total)} GiB"
    cells = max(1, width - len(label) - len(told))
    text = Text(no_wrap=True, end="").append(label, colours.dim)
    for sign, tone, share in _shares(division, cells):
        text.append(sign * share, getattr(colours, tone))
    text.append("─" * max(0, len(label) + cells - text.cell_len), colours.faint).append(f"{told}\n", colours.dim)
    return text.append_text(_legend(division, width, colours))


def _shares(division: Division, cells: int) -> list[tuple[str, str, int]]:
    """Return sign, colour and cells of each part that is there; a small one still has a cell."""
    known = [
        (*FILLS[part.kind], part.memory_bytes)
        for part in division.parts
        if not isinstance(part.memory_bytes, Missing) and part.memory_bytes > 0
    ]
    if not isinstance(division.others_bytes, Missing) and division.others_bytes > 0:
        known.append((*OTHERS, division.others_bytes))
    whole = sum(size for _, _, size in known)
    top = whole if isinstance(division.total_bytes, Missing) else max(whole, division.total_bytes)
    shares, left = [], cells
    for sign, tone, size in known:
        share = min(left, max(1, round(size / top * cells)))
        shares.append((sign, tone, share))
        left -= share
    return shares


def _legend(division: Division, width: int, colours: Palette) -> Text:
    text = Text(no_wrap=True, end="")
    entries = [(*FILLS[part.kind], part.kind.value, part.memory_bytes) for part in division.parts]
    if not isinstance(division.others_bytes, Missing) and division.others_bytes:
        entries.append((*OTHERS, "not its own", division.others_bytes))
    for sign, tone, name, size in entries:
        words = f" {name} {NOTHING if isinstance(size, Missing) else gib(size)}  "
        if text.cell_len + 1 + len(words) - 2 <= width:
            text.append(sign, getattr(colours, tone)).append(words, colours.text)
    if division.excess_bytes > 0:
        text.append(fit(f"{gib(division.excess_bytes)} GiB not taken yet", max(0, width - text.cell_len)), colours.dim)
    return text
