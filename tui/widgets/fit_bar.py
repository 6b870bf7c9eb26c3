"""A GPU's memory as a server would divide it: weights, KV cache, overhead, others, free; and the verdict beneath."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from backends.fit.bars import PartName, parts_of
from backends.fit.estimate import Fit, Verdict
from tui.format import gib
from tui.themes import Palette

MARKS = {Verdict.FITS: "✓", Verdict.TIGHT: "▲", Verdict.NO: "✗", Verdict.UNKNOWN: "?"}


class FitBar(Static):
    """The bar, what its parts are, the verdict, and the smallest change that makes it fit; the last two whole."""

    DEFAULT_CSS = """
    FitBar {
        height: auto;
        min-height: 3;
        max-height: 6;
    }
    """

    def show(self, fit: Fit | str, width: int, colours: Palette) -> None:
        """Show an estimate in `width` cells, or why there is none."""
        self.update(Text(fit, style=colours.dim) if isinstance(fit, str) else drawn(fit, width, colours))


def drawn(fit: Fit, width: int, colours: Palette) -> Text:
    """Draw an estimate: the bar and its legend are `width` cells at most, the verdict wraps."""
    lines = []
    parts = parts_of(fit, width)
    if parts:
        bar, legend = Text(), Text()
        for part in parts:
            style, line = part_colour(part.name, colours), "─" if part.name == "free" else "━"
            bar.append(line * part.cells, style)
            legend.append(line, style)
            legend.append(f"{part.name} {gib(part.amount_bytes)}  ", colours.dim)
        legend.append("GiB" + ("" if fit.gpu_count < 2 else " on each GPU"), colours.dim)
        legend.truncate(width, overflow="ellipsis")
        lines += [bar, legend]
    style = {Verdict.FITS: colours.good, Verdict.TIGHT: colours.warn, Verdict.NO: colours.bad}.get(
        fit.verdict, colours.dim
    )
    lines.append(Text(f"{MARKS[fit.verdict]} {fit.verdict}: {fit.why}", style=style))
    if fit.changes:
        lines.append(Text(f"→ {setting(fit)}{fit.changes[0].text}", style=colours.text))
    return Text("\n").join(lines)


def setting(fit: Fit) -> str:
    """Return what to write into the sheet's settings for the smallest change."""
    sets = " ".join(f"{key.removeprefix('args.')}={value}" for key, value in fit.changes[0].set.items())
    return f"{sets}: " if sets else ""


def part_colour(name: PartName, colours: Palette) -> str:
    """Return a part's colour."""
    match name:
        case "weights":
            return colours.primary
        case "KV cache":
            return colours.accent
        case "overhead":
            return colours.secondary
        case "others":
            return colours.warn
        case _:
            return colours.faint
