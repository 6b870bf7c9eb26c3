"""What is wrong with a GPU: errors that the driver reported, errors of its memory, clocks that are held down."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from backends.gpus.xids import meaning
from backends.snapshots import EccErrors, Gpu, Missing
from tui.format import NOTHING, plural
from tui.themes import Palette

SHOWN_S = 3600.0
"""So long an XID stands in the table; in the details it stays."""

OF_PROGRAMS = frozenset({13, 31, 43, 45})
"""XIDs that tell of a program's fault, not of the GPU's."""

HARMLESS = frozenset({"power cap", "sync boost", "clocks set by hand", "display", "voltage limit"})
"""What holds the clocks of a healthy GPU down as well."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as it should be: a sign and few words for a row, a line for the details."""

    sign: str
    short: str
    line: str
    is_bad: bool
    age_s: float = 0.0

    def colour(self, colours: Palette) -> str:
        """Return its colour; sign and words say the same without it."""
        return colours.bad if self.is_bad else colours.warn


def faults(gpu: Gpu, at: float) -> tuple[Fault, ...]:
    """Return what is wrong with a GPU at the moment `at`, the worst first."""
    found = []
    if not isinstance(gpu.xids, Missing) and gpu.xids:
        xid = gpu.xids[-1]
        times = f", {xid.count} times" if xid.count > 1 else ""
        said = f"XID {xid.number}, {ago(at - xid.at)}{times}: {meaning(xid.number)}"
        found.append(Fault("✗", f"XID {xid.number}", said, xid.number not in OF_PROGRAMS, at - xid.at))
    if not isinstance(gpu.ecc, Missing) and (gpu.ecc.uncorrected or gpu.ecc.corrected):
        is_bad = gpu.ecc.uncorrected > 0
        said = f"ECC: {plural(gpu.ecc.uncorrected, 'error')} not corrected, {gpu.ecc.corrected} corrected"
        short = f"ECC {gpu.ecc.uncorrected}" if is_bad else f"ECC {gpu.ecc.corrected} corrected"
        found.append(Fault("✗" if is_bad else "!", short, f"{said} since the driver was loaded", is_bad))
    if not isinstance(gpu.throttling, Missing) and gpu.throttling:
        words = ", ".join(gpu.throttling)
        found.append(Fault("▼", words, f"clocks held down: {words}", not HARMLESS.issuperset(gpu.throttling)))
    return tuple(sorted(found, key=lambda fault: not fault.is_bad))


def health_signs(gpu: Gpu, at: float, colours: Palette) -> Text:
    """Return the signs of what is wrong, for a row that has no room for words; each sign once."""
    signs: dict[str, str] = {}
    for fault in _fresh(gpu, at):
        signs.setdefault(fault.sign, fault.colour(colours))
    return Text.assemble(*signs.items())


def health_words(gpu: Gpu, at: float, colours: Palette) -> Text:
    """Return what is wrong in few words: '✗ XID 94  ▼ thermal'; '✓' for nothing, '–' where nothing could be read."""
    if not _fresh(gpu, at):
        is_mute = all(isinstance(reading, Missing) for reading in (gpu.ecc, gpu.throttling, gpu.xids))
        return Text(NOTHING if is_mute else "✓", style=colours.dim)
    parts = [(f"{fault.sign} {fault.short}", fault.colour(colours)) for fault in _fresh(gpu, at)]
    return Text("  ").join([Text(words, style=colour) for words, colour in parts])


def health_lines(gpu: Gpu, at: float, colours: Palette) -> list[Text]:
    """Return a line for each thing that is wrong."""
    return [Text(f"{fault.sign} {fault.line}", style=fault.colour(colours)) for fault in faults(gpu, at)]


def all_well(gpu: Gpu, colours: Palette) -> Text | None:
    """Return a line that says what was looked at and found in order; None where nothing could be looked at."""
    looked = []
    if isinstance(gpu.ecc, EccErrors) and not (gpu.ecc.corrected or gpu.ecc.uncorrected):
        looked.append("no ECC error")
    if gpu.throttling == ():
        looked.append("clocks free")
    if gpu.xids == ():
        looked.append("no XID")
    return Text(f"✓ {' · '.join(looked)}", style=colours.dim) if looked else None


def ago(seconds: float) -> str:
    """Say how long ago, coarsely, so that it seldom changes: 'just now', '8 min ago', '3 h ago'."""
    if seconds < 60:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 172_800 else f"{seconds / 86_400:.0f} days ago"


def _fresh(gpu: Gpu, at: float) -> list[Fault]:
    return [fault for fault in faults(gpu, at) if fault.age_s < SHOWN_S]
