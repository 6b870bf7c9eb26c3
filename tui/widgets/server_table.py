"""One row for each server: where it is in its life, what it serves on what, and how busy it is."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType

from backends.snapshots import Metrics, Missing, Server, ServerState, Snapshot
from backends.starts import StartProgress
from tui.format import NOTHING, coarse, count, duration, fit, indices, percent, shown
from tui.progress import left_short
from tui.sleeping import Taking, idle_left, state_words, step_text, switch_of
from tui.themes import MEMORY_LEVELS, STATES, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.live_table import GAP, Column, LiveTable
from tui.widgets.status_bar import describe

MODEL_FROM = 104
PROGRESS_BAR = 10
BAR_FROM = 124
ENGINE_FROM = 144
CONTEXT_FROM = 156
PROFILE_FROM = 172
CHANGED = "≠"
"""Marks a server whose profile's file is not what it was started with."""


@dataclass(frozen=True, slots=True)
class ServerLayout:
    """Widths of what comes and goes with the room; a column of width 0 is left out."""

    name: int
    state: int
    model: int
    engine: int
    port: int
    context: int
    profile: int

    @property
    def with_bar(self) -> bool:
        """Whether a start has a bar."""
        return self.state > STATE


STATE = 23
LEAST_NAME = 12
"""A terminal with less room cuts the last columns off instead."""

SAID = ("sleep", "wake", "start", "stop")
"""Steps of a switch that the state says already."""

NOT_UP = (ServerState.QUEUED, ServerState.STARTING, ServerState.BACKOFF)

FIXED = 5 + 4 + 5 + 6 + 6
"""GPUs, KV, tok/s, requests, uptime: what no width leaves out."""


def layout(width: int, servers: Sequence[Server]) -> ServerLayout:
    """Share `width` out; what is left out first: profile, context, engine, the bar, then model and port."""
    state = STATE + (PROGRESS_BAR + 1 if width >= BAR_FROM else 0)
    port = 5 if width >= MODEL_FROM else 0
    engine = 12 if width >= ENGINE_FROM else 0
    context = 7 if width >= CONTEXT_FROM else 0
    profile = 18 if width >= PROFILE_FROM else 0
    room = width - FIXED - 5 * GAP - sum(size + GAP for size in (state, port, engine, context, profile) if size)
    if not port:
        return ServerLayout(max(LEAST_NAME, room), state, 0, engine, port, context, profile)
    longest = max(map(len, ("Server", *(server.name for server in servers)))) + 2
    name = min(longest, (room - GAP) // 2)
    return ServerLayout(name, state, room - GAP - name, engine, port, context, profile)


class ServerTable(LiveTable):
    """All servers that the keeper knows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.visit('logs')", "Open its log", show=False, id="server.open", tooltip="Its log"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, tuple[tuple[object, ...], tuple[Text | str, ...]]] = {}

    def follow(self, snapshot: Snapshot, width: int, now: float, changed: Set[str] = frozenset()) -> None:
        """Show the newest states in `width` cells; `changed` names the servers whose profile's file is another now."""
        colours, sizes = palette(self.app), layout(width, snapshot.servers)
        columns = (
            Column("Server", sizes.name),
            Column("State", sizes.state),
            Column("Model", sizes.model),
            Column("Engine", sizes.engine),
            Column("GPUs", 5),
            Column("Port", sizes.port, "right"),
            Column("Context", sizes.context, "right"),
            Column("KV", 4, "right"),
            Column("tok/s", 5, "right"),
            Column("Reqs", 6, "right"),
            Column("Up", 6, "right"),
            Column("Profile", sizes.profile),
        )
        kept = [number for number, column in enumerate(columns) if column.width]
        rows: dict[str, Sequence[Text | str]] = {}
        drawn: dict[str, tuple[tuple[object, ...], tuple[Text | str, ...]]] = {}
        for server in snapshot.servers:
            is_changed = server.name in changed
            # What stays the same needs not be made again: a server at rest changes with the minute alone.
            on = switch_of(snapshot, server.name)
            told = (server, now // (1 if _hurries(server) else 60), is_changed, sizes, colours, on)
            before = self._made.get(server.name)
            if before is None or before[0][0] is not server or before[0][1:] != told[1:]:
                cells = server_row(server, now, sizes, colours, changed=is_changed, on=on)
                before = told, tuple(cells[number] for number in kept)
            drawn[server.name] = before
            rows[server.name] = before[1]
        self._made = drawn
        self.show([columns[number] for number in kept], rows)


def _hurries(server: Server) -> bool:
    """Whether its row tells a time in seconds."""
    counts_down = server.idle is not None and server.idle.since is not None
    return counts_down or server.state in (ServerState.STARTING, ServerState.BACKOFF)


def server_row(
    server: Server, now: float, sizes: ServerLayout, colours: Palette, *, changed: bool, on: Taking = None
) -> tuple[Text | str, ...]:
    """Return the cells of one server, of all columns; `on` is the switch that it takes part in."""
    metrics = server.metrics if isinstance(server.metrics, Metrics) else None
    kv = metrics.kv_cache_usage if metrics else None
    engine = f"{server.engine} {server.engine_version or ''}".rstrip()
    return (
        _name(server, sizes.name, colours, changed=changed),
        state_cell(server, now, sizes.with_bar, colours, on),
        Text(server.model, style=colours.dim),
        Text(engine.replace("transformers", "tf") if len(engine) > sizes.engine else engine, style=colours.dim),
        Text(indices(server.gpu_indices) or "CPU", style=colours.text),
        Text(str(server.port), style=colours.text),
        Text(shown(server.max_model_len, "{:,}".format), style=colours.text),
        Text(shown(kv, percent), style=colours.dim if kv is None else colours.level(kv, MEMORY_LEVELS)),
        Text(shown(metrics.generation_tokens_per_s if metrics else None, count), style=colours.text),
        _requests(metrics, colours),
        Text(uptime(server, now), style=colours.dim),
        Text(f"{CHANGED} changed", style=colours.warn) if changed else Text(server.profile, style=colours.dim),
    )


def _name(server: Server, width: int, colours: Palette, *, changed: bool) -> Text:
    if not changed:
        return Text(server.name, style=f"bold {colours.text}")
    return Text.assemble((fit(server.name, width - 2), f"bold {colours.text}"), (f" {CHANGED}", colours.warn))


def state_cell(server: Server, now: float, with_bar: bool, colours: Palette, on: Taking = None) -> Text:
    """Say where the server is: a start tells its stage, how far it is, and what is left, else the time in it.

    One that sleeps tells how deep and since when, one that will when; in a switch (`on`) the step that it is at.
    """
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
    text.append(state_words(server, now, brief=not with_bar), colour)
    if on is not None and on[1] is not None and on[1].name not in SAID:
        return text.append(f" · {step_text(on[1])}", colours.dim)
    if server.idle is not None and (left := idle_left(server.idle, now)) is not None:
        told = f" · sleeps in {left} / " if with_bar else f" · z {left}/"
        return text.append(f"{told}{duration(server.idle.ttl_s)}", colours.dim)
    if server.foreign is not None:
        text.append(" · by hand", colours.dim)
    if not server.is_live:
        text.append(f" {coarse(now - server.state_since)} ago", colours.dim)
    if server.state is ServerState.BACKOFF and server.retry_at is not None:
        text.append(f" {server.attempt}, {duration(server.retry_at - now)}", colours.dim)
    return text


def uptime(server: Server, now: float) -> str:
    """Say how long it serves; a start's time stands beside its stage."""
    began = None if server.state in NOT_UP else server.ready_at or server.launched_at
    return NOTHING if began is None or not server.is_live else coarse(now - began)


def _requests(metrics: Metrics | None, colours: Palette) -> Text:
    if metrics is None:
        return Text(NOTHING, style=colours.text)
    waits = isinstance(metrics.waiting, int) and metrics.waiting > 0
    return Text.assemble(
        (shown(metrics.running, count), colours.text),
        (f"+{shown(metrics.waiting, count)}", colours.warn if waits else colours.dim),
    )
