"""All about one server, or about one profile: what the tables have no room for."""

from __future__ import annotations

from rich.text import Text

from backends.snapshots import Metrics, Missing, ModelKind, Server, ServerState
from backends.starts import Exit, took_words
from tui.format import count, duration, fit_path, indices, memory, moment, percent, plural, shown
from tui.progress import figures_text, stages_text, start_text, wedged_text
from tui.sleeping import Taking, asleep_text, idle_text, steps_text
from tui.themes import Palette
from tui.widgets.bars import bar
from tui.widgets.crash_card import card_lines
from tui.widgets.profile_table import ProfileRow
from tui.widgets.server_table import CHANGED

LABEL = 10
BAR = 16


def server_details(
    server: Server,
    now: float,
    width: int,
    colours: Palette,
    *,
    changed: bool = False,
    fix_key: str = "f",
    on: Taking = None,
) -> Text:
    """Build the lines about a server in `width` cells; the cause of a failure comes first, whole.

    `changed` says that its profile's file is another than the one it was started with; `fix_key` shows the card.
    `on` is the switch that it takes part in.
    """
    lines: list[Text] = []
    if server.cause is not None:
        lines.append(Text(server.cause, style=colours.bad if not server.is_live else colours.warn))
    if server.card is not None:
        lines += card_lines(server.card, width, fix_key, colours)
    if changed:
        told = f"{CHANGED} profile changed since start: to take it up, stop it and start {server.profile}"
        lines.append(Text(told, style=colours.warn))
    lines += _sleep(server, now, width, colours, on)
    if server.exit is not None:
        lines.append(_line("exit", _ended(server.exit), width, colours))
    engine = f"{server.engine} {server.engine_version or ''}".strip()
    model = server.model if server.model.endswith(server.served_name) else f"{server.model} as {server.served_name}"
    lines.append(_line("model", model, width, colours))
    facts = [engine] if server.kind is ModelKind.UNKNOWN else [engine, server.kind.value]
    if server.max_model_len is not None:
        facts.append(f"context {server.max_model_len:,}")
    lines.append(_line("engine", " · ".join(facts), width, colours))
    if server.is_live:
        key = " · wants an API key" if server.has_api_key else ""
        lines.append(_line("endpoint", f"{server.address}/v1{key}", width, colours))
    held = plural(len(server.gpus), "GPU") + f": {indices(server.gpu_indices)}" if server.gpus else "the CPU"
    lines.append(
        _line(
            "runs on" if server.is_live else "ran on",
            f"{held}{f' · pid {server.pid}' if server.pid else ''}",
            width,
            colours,
        )
    )
    if server.launched_at is not None:
        took = ""
        if server.ready_at is not None:
            took = f" · ready in {took_words(server.ready_at - server.launched_at)}"
        elif server.state is ServerState.STARTING:
            took = f" · {duration(now - server.launched_at)} ago"
        lines.append(_line("launched", moment(server.launched_at) + took, width, colours))
    lines += _start(server, now, width, colours)
    if isinstance(server.metrics, Metrics):
        lines += _serving(server.metrics, width, colours)
    if server.foreign is not None:
        who = f"{server.foreign.user}, pid {server.foreign.pid}: {server.foreign.command}"
        lines.append(_line("by hand", who, width, colours))
    if server.log_path is not None:
        lines.append(_line("log", fit_path(server.log_path, width - LABEL), width, colours))
    if server.progress is not None and server.progress.done:
        lines.append(_line("stages", stages_text(server.progress.done), width, colours))
    if server.figures is not None and (told := figures_text(server.figures)):
        lines.append(_line("memory", told, width, colours))
    return Text("\n").join(lines)


def _sleep(server: Server, now: float, width: int, colours: Palette, on: Taking) -> list[Text]:
    """Tell the switch that it is in, that it sleeps or will, and what of the host it holds for that."""
    lines = []
    if on is not None:
        to = "" if on[0].to == server.name else f"to {on[0].to} · "
        lines.append(_line("switch", to + (steps_text(on[0], now) or "waits for the switch before it"), width, colours))
    told = []
    if server.state is ServerState.SLEEPING:
        told.append(asleep_text(server.sleep, now))
    elif server.idle is not None:
        told.append(idle_text(server.idle, now))
    if server.host_bytes:
        told.append(f"holds {memory(server.host_bytes)} of the host's memory")
    # That it can sleep is no news of a start, whose stages need the room.
    if told or (server.can_sleep and server.is_live and server.state is not ServerState.STARTING):
        lines.append(_line("sleep", " · ".join(told) or "gives way asleep", width, colours))
    return lines


def _start(server: Server, now: float, width: int, colours: Palette) -> list[Text]:
    """Tell how far a start is, or since when it looks wedged, and what it is at."""
    lines, progress = [], server.progress
    if server.state is ServerState.STARTING and progress is not None:
        if progress.quiet_since is not None:
            lines.append(Text(wedged_text(progress), style=colours.warn))
        elif progress.ratio is not None:
            lines.append(_line("start", "", width, colours))
            lines[-1].append_text(bar(progress.ratio, BAR, colours.state(server.state), colours.faint))
            lines[-1].append(f" {start_text(server, now)}", colours.text)
            lines[-1].truncate(width, overflow="ellipsis")
    doing = server.stage.detail if server.stage is not None else ""
    if server.state is ServerState.STARTING and progress is not None and progress.based_on:
        like_it = f"{plural(progress.based_on, 'start')} like it"
        if not doing:
            return [*lines, _line("estimate", f"by {like_it}", width, colours)]
        doing += f" · time by {like_it}"
    if doing:
        lines.append(_line("doing", doing, width, colours))
    return lines


def _serving(metrics: Metrics, width: int, colours: Palette) -> list[Text]:
    busy = f"{shown(metrics.running, str)} running, {shown(metrics.waiting, str)} waiting"
    speed = f"{shown(metrics.generation_tokens_per_s, count)} tok/s out, {shown(metrics.prompt_tokens_per_s, count)} in"
    size = "" if isinstance(metrics.kv_cache_tokens, Missing) else f" of {metrics.kv_cache_tokens:,} tokens"
    hits = shown(metrics.prefix_cache_hit_rate, percent)
    cache = f"{shown(metrics.kv_cache_usage, percent)}{size} · prefix hits {hits}"
    return [
        _line("serving", f"{busy} · {speed}", width, colours),
        _line("KV cache", cache, width, colours),
    ]


def _line(label: str, value: str, width: int, colours: Palette) -> Text:
    text = Text.assemble((f"{label:<{LABEL}}", colours.dim), (value, colours.text))
    text.truncate(width, overflow="ellipsis")
    return text


def _ended(end: Exit) -> str:
    how = f"signal {end.signal}" if end.signal is not None else f"code {end.code}"
    return f"{how}, {'as asked' if end.asked else 'nobody asked for it'}"


def profile_details(profile: ProfileRow, width: int, colours: Palette) -> Text:
    """Build the lines about a profile: what it is for, where it is, and what is wrong with it."""
    lines = []
    if profile.problem is not None:
        lines.append(Text(profile.problem, style=colours.bad))
    if profile.description:
        lines.append(Text(profile.description, style=colours.text))
    if profile.problem is None:
        lines.append(_line("model", profile.model, width, colours))
        lines.append(_line("engine", f"{profile.engine} on {_needs(profile.gpus)}", width, colours))
    where = "shipped with gpubox" if profile.origin == "library" else fit_path(profile.path, width - LABEL)
    lines.append(_line("file", where, width, colours))
    return Text("\n").join(lines)


def _needs(gpus: str) -> str:
    return "the CPU" if gpus == "CPU" else plural(int(gpus), "GPU") if gpus.isdecimal() else gpus
