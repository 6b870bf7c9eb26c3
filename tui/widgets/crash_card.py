"""A crash card as text: short in the details of a server, whole on its own screen."""

from __future__ import annotations

from rich.text import Text

from backends.starts import Card
from tui.format import fit
from tui.themes import Palette

EVIDENCE_LINES = 3
WRAP_LOSS = 8
"""Cells of a line that wrapping at words leaves empty, about."""


def card_lines(card: Card, width: int, key: str, colours: Palette) -> list[Text]:
    """Build what the details of a failed server say of its card: evidence, first remedy, the `key` that shows it."""
    lines = []
    if card.evidence is not None:
        where = f"line {card.evidence.line}  "
        text = fit(card.evidence.text, max(10, width - len(where)))
        lines.append(Text.assemble((where, colours.dim), (text, colours.dim)))
    if card.remedies:
        lines.append(Text.assemble(("→ ", colours.accent), (card.remedies[0].text, colours.text)))
    if any(remedy.set for remedy in card.remedies):
        lines.append(Text.assemble((f"{key} ", colours.primary), ("shows the remedies and applies one", colours.dim)))
    elif card.remedies:
        lines.append(Text.assemble((f"{key} ", colours.primary), ("shows the whole card", colours.dim)))
    return lines


def card_text(card: Card, width: int, frames: int, colours: Palette) -> Text:
    """Build a card's head: what happened, the line that tells it, and whose `frames` innermost frames began it."""
    lines = [Text(card.summary, style=colours.bad)]
    if card.evidence is not None:
        lines.append(Text(""))
        where = f"line {card.evidence.line}: "
        lines.append(
            Text(where + fit(card.evidence.text, EVIDENCE_LINES * (width - WRAP_LOSS) - len(where)), style=colours.text)
        )
    shown = card.frames[-frames:] if frames else ()
    lines += [Text(fit(f"  at {frame}", width), style=colours.dim) for frame in reversed(shown)]
    return Text("\n").join(lines)


def diff_text(diff: str, colours: Palette) -> Text:
    """Colour a unified diff of one file, its head left out; its signs say the same without colour."""
    styles = {"+": colours.good, "-": colours.bad, "@": colours.dim}
    return Text("\n").join(Text(line, style=styles.get(line[:1], colours.text)) for line in diff.splitlines()[2:])
