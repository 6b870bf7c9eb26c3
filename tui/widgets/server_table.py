"""One row for each server: where it is in its life, what it serves on what, and how busy it is."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from backends.snapshots import Metrics, Missing, Server, ServerState, Snapshot
from backends.starts import StartProgress
from tui.format import NOTHING, count, duration, fit, indices, percent, shown
from tui.progress import left_short
from tui.themes import MEMORY_LEVELS, STATES, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.live_table import GAP, Column, LiveTable
from tui.widgets.status_bar import describe

MODEL_FROM = 104
PROGRESS_BAR = 10
BAR_FROM = 124


class ServerTable(LiveTable):
    """All servers that the keeper knows."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "screen.visit('logs')", show=False)]

    def follow(self, snapshot: Snapshot, width: int, now: float) -> None:
        """Show the newest states in `width` cells."""
        colours = palette(self.app)
        with_bar, with_model = width >= BAR_FROM, width >= MODEL_FROM
        state = 23 + (PROGRESS_BAR + 1 if with_bar else 0)
        port = 5 if with_model else 0
        room = width - (state + port + 5 + 4 + 5 + 6 + 6) - (8 if with_model else 6) * GAP
        longest = max((len(server.name) for server in snapshot.servers), default=10)
        name = min(longest, room // 2) if with_model else room
        columns = (
            Column("Server", name),
            Column("State", state),
            Column("Model", room - name),
            Column("GPUs", 5),
            Column("Port", port, "right"),
            Column("KV", 4, "right"),
            Column("tok/s", 5, "right"),
            Column("Reqs", 6, "right"),
            Column("Up", 6, "right"),
        )
        kept = [number for number, column in enumerate(columns) if column.width]
        rows = {server.name: server_row(server, now, with_bar, colours) for server in snapshot.servers}
        self.show([columns[n] for n in kept], {key: [row[n] for n in kept] for key, row in rows.items()})


def server_row(server: Server, now: float, with_bar: bool, colours: Palette) -> tuple[Text | str, ...]:
    """Return the cells of one server."""
    metrics = server.metrics if isinstance(server.metrics, Metrics) else None
    kv = metrics.kv_cache_usage if metrics else None
    return (
        Text(server.name, style=f"bold {colours.text}"),
        state_cell(server, now, with_bar, colours),
        Text(server.model, style=colours.dim),
        Text(indices(server.gpu_indices) or "CPU", style=colours.text),
        Text(str(server.port), style=colours.text),
        Text(shown(kv, percent), style=colours.dim if kv is None else colours.level(kv, MEMORY_LEVELS)),
        Text(shown(metrics.generation_tokens_per_s if metrics else None, count), style=colours.text),
        _requests(metrics, colours),
        Text(uptime(server, now), style=colours.dim),
    )


def state_cell(server: Server, now: float, with_bar: bool, colours: Palette) -> Text:
    """Say where the server is: a start tells its stage, how far it is, and what is left, else the time in it."""
    sign, colour = STATES[server.state][0], colours.state(server.state)
    progress = server.progress or StartProgress(now)
    if server.state is ServerState.STARTING and progress.quiet_since is not None:
        since = duration(now - progress.quiet_since)
        return Text.assemble((f"{sign} looks wedged", colours.warn), (f" {since}", colours.dim))
    text = Text(f"{sign} ", style=colour)
    if server.state is ServerState.STARTING and server.stage is not None:
        if with_bar:
            known = next((it for it in (progress.ratio, server.stage.progress) if it is not None), Missing("not told"))
            text.append_text(bar(known, PROGRESS_BAR, colour, colours.faint)).append(" ")
        time = left_short(progress, now) or duration(now - server.stage.since)
        return text.append(fit(describe(server), 20 - len(time)), colour).append(f" {time}", colours.dim)
    text.append(server.state.value, colour)
    if server.foreign is not None:
        text.append(" · by hand", colours.dim)
    if not server.is_live:
        text.append(f" {duration(now - server.state_since)} ago", colours.dim)
    if server.state is ServerState.BACKOFF and server.retry_at is not None:
        text.append(f" {server.attempt}, {duration(server.retry_at - now)}", colours.dim)
    return text


def uptime(server: Server, now: float) -> str:
    """Say how long it serves, or starts."""
    began = server.ready_at or server.launched_at
    return NOTHING if began is None or not server.is_live else duration(now - began)


def _requests(metrics: Metrics | None, colours: Palette) -> Text:
    if metrics is None:
        return Text(NOTHING, style=colours.text)
    waits = isinstance(metrics.waiting, int) and metrics.waiting > 0
    return Text.assemble(
        (shown(metrics.running, count), colours.text),
        (f"+{shown(metrics.waiting, count)}", colours.warn if waits else colours.dim),
    )
