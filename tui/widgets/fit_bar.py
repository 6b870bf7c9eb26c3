"""The verdict on a start, and a GPU's memory as it would divide it: weights, KV cache, overhead, others, free."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from backends.fit.bars import SIGNS, PartName, parts_of
from backends.fit.estimate import Fit, Verdict
from tui.format import gib
from tui.themes import Palette

MARKS = {Verdict.FITS: "✓", Verdict.TIGHT: "▲", Verdict.NO: "✗", Verdict.UNKNOWN: "?"}


class FitBar(Static):
    """The verdict and the smallest change that makes it fit, both whole; the bar, and what its parts are."""

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
    """Draw an estimate: the verdict, which wraps, then the bar and its legend of `width` cells at most."""
    style = {Verdict.FITS: colours.good, Verdict.TIGHT: colours.warn, Verdict.NO: colours.bad}.get(
        fit.verdict, colours.dim
    )
    lines = [Text(f"{MARKS[fit.verdict]} {fit.verdict}: {fit.why}", style=style)]
    if fit.changes:
        lines.append(Text(f"→ {setting(fit)}{fit.changes[0].text}", style=colours.text))
    if parts := parts_of(fit, width):
        bar, legend = Text(), Text()
        for part in parts:
            bar.append(SIGNS[part.name] * part.cells, part_colour(part.name, colours))
            legend.append(f"{SIGNS[part.name]} ", part_colour(part.name, colours))
            legend.append(f"{part.name} {gib(part.amount_bytes)}  ", colours.dim)
        legend.append("GiB" + ("" if fit.gpu_count < 2 else " on each GPU"), colours.dim)
        legend.truncate(width, overflow="ellipsis")
        lines += [bar, legend]
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
