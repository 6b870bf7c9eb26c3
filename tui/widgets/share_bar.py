"""A GPU's memory as a bar of segments: each owner has a sign of its own, so that it reads without colour."""

from __future__ import annotations

from rich.text import Text

from backends.snapshots import Gpu, Missing, Owner, Share
from tui.owners import SIGNS, TRIVIAL_BYTES, share_text
from tui.themes import Palette

ORDER = (Owner.SERVER, Owner.RUN, Owner.ORPHAN, Owner.FOREIGN, Owner.UNATTRIBUTED)


def owner_colour(owner: Owner, colours: Palette) -> str:
    """Return the colour that stands for an owner."""
    return {
        Owner.SERVER: colours.primary,
        Owner.RUN: colours.secondary,
        Owner.FOREIGN: colours.warn,
        Owner.ORPHAN: colours.bad,
        Owner.UNATTRIBUTED: colours.dim,
    }[owner]


def share_bar(gpu: Gpu, width: int, colours: Palette) -> Text:
    """Draw whose a GPU's memory is in `width` cells; dotted where that cannot be read."""
    total = gpu.memory_total_bytes
    if isinstance(total, Missing) or isinstance(gpu.memory_used_bytes, Missing):
        return Text("┈" * width, style=colours.faint)
    text = Text()
    for share, cells in zip(_ordered(gpu), _cells(gpu, total, width), strict=True):
        text.append(SIGNS[share.owner] * cells, owner_colour(share.owner, colours))
    return text.append("─" * (width - text.cell_len), colours.faint)


def share_lines(gpu: Gpu, width: int, colours: Palette) -> list[Text]:
    """Say each share with its sign, as many on a line as `width` has room for."""
    lines: list[Text] = []
    for share in gpu.shares:
        part = Text.assemble(
            (f"{SIGNS[share.owner]} ", owner_colour(share.owner, colours)), (share_text(share), colours.text)
        )
        if lines and lines[-1].cell_len + 3 + part.cell_len <= width:
            lines[-1].append(" · ", colours.dim).append_text(part)
        else:
            lines.append(part)
    return lines


def _ordered(gpu: Gpu) -> list[Share]:
    return sorted(gpu.shares, key=lambda share: ORDER.index(share.owner))


def _cells(gpu: Gpu, total_bytes: int, width: int) -> list[int]:
    """Return how many cells each share gets; one that is somebody's gets at least one."""
    cells, reached = [], 0
    for share in _ordered(gpu):
        size = 0 if isinstance(share.memory_bytes, Missing) else share.memory_bytes
        before = round(reached / max(1, total_bytes) * width)
        reached += size
        own = round(reached / max(1, total_bytes) * width) - before
        is_somebodys = share.owner is not Owner.UNATTRIBUTED and size > TRIVIAL_BYTES
        cells.append(max(own, 1 if is_somebodys else 0))
    while sum(cells) > width and max(cells) > 0:
        cells[cells.index(max(cells))] -= 1
    return cells
