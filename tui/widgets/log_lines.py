"""The lines of text around a log: what is shown of it, where one stands in it, what a start is doing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from backends.logs.text import LEVELS
from backends.logs.windows import Extent
from backends.snapshots import Server, ServerState
from tui.format import MIB, NOTHING, duration, fit, fit_path, memory, percent, plural
from tui.keymap import KeyNames
from tui.themes import STATES, Palette
from tui.widgets.bars import bar
from tui.widgets.log_reading import LogStatus, ReadingPane

BAR_CELLS = 16
PATTERN_CELLS = 24


def rule_text(rule: tuple[int, Sequence[str]]) -> str:
    """Say what a filter lets pass: 'WARNING and worse · EngineCore'; empty where it lets pass all."""
    level, processes = rule
    parts = []
    if level:
        parts.append(LEVELS[level - 1] + ("" if level == len(LEVELS) else "+"))
    if processes:
        parts.append(",".join(processes))
    return " ".join(parts)


def extent_text(extent: Extent, rule: tuple[int, Sequence[str]], colours: Palette) -> Text:
    """Say how many lines there are, how many of them are shown, and how big that is."""
    text = Text(no_wrap=True)
    if extent.shown is not None:
        text.append(f"  {rule_text(rule)}", f"bold {colours.warn}")
        text.append(f"  {extent.shown:,}{'…' if extent.is_filtering else ''} of", colours.dim)
    if extent.exists:
        lines = f"{extent.lines:,} line" + ("" if extent.lines == 1 else "s") + ("" if extent.is_whole else "…")
        text.append(f"{' ' if extent.shown is not None else '  '}{lines}  {_size(extent.size_bytes)}", colours.dim)
    return text


def path_text(path: Path, room: int, colours: Palette) -> Text:
    """Say which file it is, where there is room to."""
    return Text(f"  {fit_path(str(path), room - 2)}", colours.dim) if room > 22 else Text()


def standing_text(status: LogStatus, *, is_live: bool, colours: Palette, key: KeyNames) -> Text:
    """Say where one stands: at the end, or above it, and what has come since."""
    ends = key("logs.end_search")
    if status.is_marking:
        moves = f"▶ {key('log.up')} {key('log.down')} choose"
        acts = f"{key('log.mark')} marks from here · {key('log.copy')} copies · {ends} ends"
        return Text(f"{moves} · {acts}", colours.primary, no_wrap=True)
    if status.is_looking:
        return Text(f"… looking further · {ends} stops", colours.warn)
    if status.following:
        text, colour = ("▼ following", colours.good) if is_live else ("▼ the log ends here", colours.dim)
        return Text(text, colour, no_wrap=True)
    if status.new_lines:
        new = f"{status.new_lines:,} new line" + ("" if status.new_lines == 1 else "s")
        return Text(f"↓ {new} · {key('log.follow')} to follow", colours.warn, no_wrap=True)
    return Text(f"‖ paused · {key('log.follow')} to follow", colours.warn, no_wrap=True)


def finding_text(status: LogStatus, pattern: str, colours: Palette, key: KeyNames) -> Text:
    """Say what a search has found, or which line is on top."""
    text = Text(no_wrap=True)
    if status.matches is not None:
        rank = f"{status.match:,}" if status.match else NOTHING
        found = f"{rank} of {status.matches:,}" if status.matches else "no match"
        more = "…" if status.is_searching else ""
        if status.extent.has_failed:
            more = ", then the search broke off"
        elif status.extent.given_up:
            more += f" · {plural(status.extent.given_up, 'line')} took too long"
        text.append(f"/{fit(pattern, PATTERN_CELLS)}/ ", colours.text)
        keys = f"{key('logs.next')} {key('logs.previous')} · {key('logs.end_search')} ends"
        text.append(f"{found}{more} · {keys}", colours.dim)
    elif not status.following:
        line = f"line {status.line:,} · " if status.line is not None else ""
        text.append(f"{line}{percent(status.part)}", colours.dim)
    return text


def beside(left: Text, right: Text, width: int) -> Text:
    """Put one text at each end of a line; the right one only where both have room."""
    room = width - left.cell_len - right.cell_len
    return Text.assemble(left, " " * room, right, no_wrap=True) if room > 0 else left


def _size(amount_bytes: int) -> str:
    return memory(amount_bytes) if amount_bytes >= MIB else f"{amount_bytes / 1024:.0f} KiB"


def empty_text(server: Server | None, view: ReadingPane, pinned: Path | None, key: KeyNames) -> Text | None:
    """Say why there is no line to be seen and which key to press; None where there are lines.

    `pinned` is a log that was chosen in place of the server's newest.
    """
    extent, path = view.extent, view.path
    if extent.problem:
        return Text(f"{path} cannot be read: {extent.problem}")
    if extent.exists and (extent.size_bytes or pinned):
        if view.is_empty and extent.shown == 0 and not extent.is_filtering:
            ways = f"Press {key('logs.level')} for another level, {key('logs.end_search')} to see all lines."
            return Text(f"No line of {rule_text(view.rule)} so far.\n\n{ways}")
        return None if extent.size_bytes else Text("The log is empty so far.")
    if pinned is None and server is None:
        way = f"Press {key('mode.servers')}, choose a profile and start it."
        return Text(f"There is no server yet, so there is no log.\n\n{way}")
    if pinned is None and server is not None and server.foreign is not None:
        return Text(f"{server.name}: log unknown: it was not started by gpubox, but by hand, as pid {server.pid}.")
    if path is None:
        name = server.name if server else "It"
        return Text(f"{name} has no log yet.\n\nIt gets one once it starts: press {key('mode.servers')} to start it.")
    if extent.exists:
        return Text("The log is empty so far.")
    if server is not None and server.is_live and pinned is None:
        return Text("The log's first line is awaited…")
    return Text(f"This log is not there any more: {path}\n\nPress {key('logs.older')} for an older start.")


def stage_line(server: Server, now: float, colours: Palette) -> Text | None:
    """Say what a start is doing and for how long, or why it ended; None where the log says it all."""
    sign, _ = STATES[server.state]
    colour = colours.state(server.state)
    if server.state is ServerState.FAILED or server.state is ServerState.LOST:
        return Text.assemble(f"{sign} {server.state.value}", (f"  {server.cause or ''}", colours.text), style=colour)
    if server.state is ServerState.BACKOFF:
        wait_s = max(0.0, (server.retry_at or now) - now)
        return Text(f"{sign} start {server.attempt} failed, the next one is in {wait_s:.0f} s", style=colour)
    if server.stage is None:
        return None
    stage = server.stage
    text = Text.assemble((f"{sign} {stage.name}  ", colour), no_wrap=True)
    if stage.progress is not None:
        text.append_text(bar(stage.progress, BAR_CELLS, colour, colours.faint))
        text.append(f" {percent(stage.progress)}  ", colours.text)
    text.append(duration(now - stage.since), colours.text)
    if server.launched_at is not None:
        text.append(f" of {duration(now - server.launched_at)} since launch", colours.dim)
    if stage.detail:
        text.append(f"  {stage.detail}", colours.dim)
    return text


def compiled(text: str) -> re.Pattern[str]:
    """Compile what a person searches for; only a capital letter in it makes capitals matter. Raises re.error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A FutureWarning would be printed across the screen.
        try:
            return re.compile(text, 0 if re.search(r"(?<!\\)[A-Z]", text) else re.IGNORECASE)
        except (OverflowError, RecursionError, ValueError) as problem:
            raise re.error(str(problem)) from problem
