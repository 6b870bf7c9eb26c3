"""One row for each launch on record: when, of what, how it ended, how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from backends.records import Launch
from backends.snapshots import ServerState
from tui.format import NOTHING, coarse, duration, moment, plural, short_gpu_name
from tui.progress import took_text
from tui.themes import STATES, Palette, palette
from tui.widgets.live_table import GAP, Column, LiveTable

WHEN, OUTCOME, READY, RAN, GPUS, ENGINE = 11, 10, 7, 7, 9, 12
CAUSE_FROM = 96
PROFILE_FROM = 130


class RunTable(LiveTable):
    """Launches, newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.log", "Log", id="runs.log", tooltip="Show its log, as long as it is kept"),
    ]

    def follow(self, launches: Sequence[Launch], width: int, now: float) -> None:
        """Show `launches` in `width` cells."""
        colours = palette(self.app)
        engine = ENGINE if width >= CAUSE_FROM else 0
        longest = max((len(launch.server) for launch in launches), default=10)
        fixed = [size for size in (WHEN, OUTCOME, READY, RAN, GPUS, engine) if size]
        room = width - sum(fixed) - GAP * len(fixed)
        # Short names must not cut the headings.
        server = room if not engine else max(len("Server"), min(longest, 28))
        profile = max(len("Profile"), min(longest, 24)) if width >= PROFILE_FROM else 0
        cause = max(0, room - server - GAP - (profile + GAP if profile else 0)) if engine else 0
        columns = (
            Column("Launched", WHEN),
            Column("Server", server),
            Column("Outcome", OUTCOME),
            Column("Ready in", READY + 1, "right"),
            Column("Ran", RAN - 1, "right"),
            Column("GPUs", GPUS),
            Column("Engine", engine),
            Column("Profile", profile),
            Column("Cause", cause),
        )
        kept = [number for number, column in enumerate(columns) if column.width]
        rows = {launch.id: _row(launch, now, colours) for launch in launches}
        self.show([columns[n] for n in kept], {key: [row[n] for n in kept] for key, row in rows.items()})


def _row(launch: Launch, now: float, colours: Palette) -> tuple[Text, ...]:
    return (
        Text(moment(launch.launched_at)[5:16], style=colours.dim),
        Text(launch.server, style=f"bold {colours.text}"),
        outcome_text(launch, colours),
        Text(NOTHING if launch.start_s is None else took_text(launch.start_s), style=colours.text),
        Text(ran_text(launch, now), style=colours.text),
        Text(_gpus(launch), style=colours.text),
        Text(f"{launch.engine} {launch.engine_version or ''}".rstrip(), style=colours.dim),
        Text(launch.profile, style=colours.dim),
        Text((launch.cause or "").partition("\n")[0], style=colours.bad),
    )


def outcome_text(launch: Launch, colours: Palette) -> Text:
    """Say how a launch ended, or that it goes on, with the sign that a server of that state has."""
    try:
        state = ServerState(launch.outcome)
    except ValueError:  # of a newer gpubox
        return Text(launch.outcome, style=colours.dim)
    return Text(f"{STATES[state][0]} {launch.outcome}", style=colours.state(state))


def ran_text(launch: Launch, now: float) -> str:
    """Say how long a launch has run, from its start to its end, or to now."""
    end = launch.ended_at
    if end is None:
        return coarse(now - launch.launched_at) if launch.outcome in ("starting", "ready") else NOTHING
    return duration(end - launch.launched_at)


def _gpus(launch: Launch) -> str:
    return f"{launch.gpu_count} × {short_gpu_name(launch.gpu_kind)}" if launch.gpu_count else "CPU"


def gpus_text(launch: Launch) -> str:
    """Say in words what a launch ran on."""
    return f"{plural(launch.gpu_count, 'GPU')}: {launch.gpu_kind}" if launch.gpu_count else "the CPU"
