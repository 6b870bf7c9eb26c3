"""One row for each profile that a server can be started from; a broken one says what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from tui.themes import Palette, palette
from tui.widgets.live_table import GAP, Column, LiveTable

if TYPE_CHECKING:
    from profiles.errors import ProfileProblem
    from profiles.store import Entry, Store

WIDE = 100
"""From so many cells on, engine and model are written out."""
NARROW = 60
"""Below so many cells there is room for the name only: engine and model stand beside the table."""


Shown = tuple[tuple[Column, ...], dict[str, tuple[Text, ...]]]


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """What is shown of a profile; `problem` is why it cannot be used, `gpus` how many it needs ('CPU' for none)."""

    name: str
    engine: str
    model: str
    gpus: str
    origin: str
    path: str = ""
    description: str = ""
    problem: str | None = None


class ProfileTable(LiveTable):
    """All profiles, in the order in which they are searched."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.launch", "Start …", id="profile.launch", tooltip="Choose GPUs, port, settings; start"),
        Binding("s", "screen.start", "Switch", id="profile.start", tooltip="Have it serve; what is in its way yields"),
    ]

    def follow(self, profiles: Sequence[ProfileRow], width: int) -> None:
        """Show `profiles` in `width` cells."""
        colours = palette(self.app)
        if width < NARROW:
            columns, rows = _names(profiles, width, colours)
        else:
            columns, rows = _whole(profiles, width, colours)
        self.show(columns, rows)


def _names(profiles: Sequence[ProfileRow], width: int, colours: Palette) -> Shown:
    columns = (Column("Profile", width - 4 - 7 - 2 * GAP - 1), Column("GPUs", 4, "right"), Column("From", 7))
    rows: dict[str, tuple[Text, ...]] = {}
    for profile in profiles:
        sign, colour = ("", colours.text) if profile.problem is None else ("✗ ", colours.bad)
        name = Text(sign + profile.name, style=f"bold {colour}")
        rows[profile.name] = (name, Text(profile.gpus, style=colours.text), Text(profile.origin, style=colours.dim))
    return columns, rows


def _whole(profiles: Sequence[ProfileRow], width: int, colours: Palette) -> Shown:
    name = min(max((len(p.name) for p in profiles), default=10), 28)
    engine = 12 if width >= WIDE else 7
    model = width - name - engine - 4 - 7 - 4 * GAP
    columns = (
        Column("Profile", name),
        Column("Engine", engine),
        Column("Model", model),
        Column("GPUs", 4, "right"),
        Column("From", 7),
    )
    rows: dict[str, tuple[Text, ...]] = {}
    for profile in profiles:
        if profile.problem is not None:
            what = Text(f"✗ {profile.problem.splitlines()[0]}", style=colours.bad)
            cells = (Text(profile.name, style=colours.bad), Text("broken", style=colours.bad), what)
        else:
            cells = (
                Text(profile.name, style=f"bold {colours.text}"),
                Text(profile.engine, style=colours.text),
                Text(profile.model if width >= WIDE else profile.model.rpartition("/")[2], style=colours.text),
            )
        rows[profile.name] = (
            *cells,
            Text(profile.gpus, style=colours.text),
            Text(profile.origin, style=colours.dim),
        )
    return columns, rows


def list_profiles(store: Store) -> tuple[ProfileRow, ...]:
    """Read every profile, in the order in which they are searched."""
    return tuple(_row(entry) for entry in store.entries())


def _row(entry: Entry) -> ProfileRow:
    profile = entry.profile
    if profile is None:
        said = "\n".join(_said(problem) for problem in entry.problems)
        return ProfileRow(entry.name, "", "", "", entry.origin, str(entry.path), problem=said)
    gpus = "CPU" if profile.gpus == "cpu" else str(profile.gpus)
    return ProfileRow(
        entry.name, profile.engine, profile.model, gpus, entry.origin, str(entry.path), profile.description
    )


def _said(problem: ProfileProblem) -> str:
    what = f"{problem.where}: {problem.message}" if problem.where else problem.message
    return f"{what}; {problem.suggestion}" if problem.suggestion else what
