"""Logs: the selected server's log as it is written, this start's and the ones before, read from its file."""

from __future__ import annotations

import asyncio
import re
import warnings
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static

from backends import paths
from backends.processes.logs import LogStart, log_starts
from backends.snapshots import Server, ServerState, Snapshot
from tui.format import MIB, NOTHING, duration, fit, fit_path, memory, moment, percent
from tui.screens.base import GpuboxScreen
from tui.themes import STATES, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.log_view import LogStatus, LogView

BAR_CELLS = 16


class LogsScreen(GpuboxScreen):
    """One log from its end backwards, with search; `,` and `.` go through the starts."""

    CSS_PATH = "../styles/logs.tcss"
    AUTO_FOCUS = "LogView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "slash", "search", "Search", id="logs.search", key_display="/", tooltip="Search with a regular expression"
        ),
        Binding("n", "next_match(1)", "Next", id="logs.next", tooltip="Go to the next match below"),
        Binding("N", "next_match(-1)", "Before", id="logs.previous", tooltip="Go to the match before"),
        Binding(
            "comma",
            "start(1)",
            "Older start",
            id="logs.older",
            key_display=",",
            tooltip="Show the log of the start before",
        ),
        Binding(
            "full_stop",
            "start(-1)",
            "Newer start",
            id="logs.newer",
            key_display=".",
            tooltip="Show the log of the next start",
        ),
        Binding("escape", "end_search", "End search", show=False, id="logs.end_search"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, str | None] | None = None
        self._starts: list[LogStart] = []
        self._back = 0
        self._pattern = ""
        self._complaint = ""

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Static(id="head")
        yield LogView(id="log")
        yield Static("Waiting for the keeper…", id="empty")
        yield Static(id="stage")
        yield Input(placeholder="regular expression · small letters match capitals too · Enter · Esc", id="search")
        yield Static(id="foot")

    def on_mount(self) -> None:
        """Show nothing as long as nothing is known; keep the time in a stage running."""
        self.query_one(LogView).display = False
        self.set_interval(1.0, self._tick)

    def on_screen_suspend(self) -> None:
        """Read nothing while another screen is on top."""
        self.query_one(LogView).pause(paused=True)

    def on_screen_resume(self) -> None:
        """Go on reading."""
        self.query_one(LogView).pause(paused=False)

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the selected server's newest log, or the start that was chosen of it."""
        shown = (server.name, server.log_path) if server else None
        if shown != self._shown:
            is_other = self._shown is None or server is None or server.name != self._shown[0]
            self._shown = shown
            if is_other:
                self._starts, self._back = [], 0
            if server is not None and server.foreign is None:
                self._find_starts(server)
            if self._back == 0:
                self._open(Path(server.log_path) if server and server.log_path else None)
        self._tell(server)

    @work(group="starts", exclusive=True)
    async def _find_starts(self, server: Server) -> None:
        folder = Path(server.log_path).parent if server.log_path else paths.log_dir()
        chosen = self.query_one(LogView).path
        self._starts = await asyncio.to_thread(log_starts, folder, server.name)
        found = [number for number, start in enumerate(self._starts) if start.path == chosen]
        self._back = found[0] if found else 0
        if chosen is None and self._starts:
            self._open(self._starts[0].path)
        self.refresh_bindings()
        self._tell(self.server)

    def _open(self, path: Path | None) -> None:
        view = self.query_one(LogView)
        if view.path != path:
            view.open(path)

    def _tick(self) -> None:
        if self.is_current and self.server is not None and self.server.stage is not None:
            self._tell_stage(self.server)

    @on(LogView.Changed)
    def _follow_view(self) -> None:
        self._tell(self.server)

    def _tell(self, server: Server | None) -> None:
        """Say where one is and what there is to see."""
        view = self.query_one(LogView)
        status = view.status
        empty = self._why_empty(server, view.path, status)
        view.display = not empty
        self.query_one("#empty").display = bool(empty)
        if empty:
            self.query_one("#empty", Static).update(empty)
        width, colours = self.app.size.width - 2, palette(self.app)
        self.query_one("#head", Static).update(self._head(server, view.path, status, width, colours))
        self.query_one("#foot", Static).update(self._foot(view, status, width, colours))
        self._tell_stage(server)

    def _why_empty(self, server: Server | None, path: Path | None, status: LogStatus) -> Text | None:
        if status.extent.problem:
            return Text(f"{path} cannot be read: {status.extent.problem}")
        if server is None:
            return Text("There is no server yet, so there is no log.\n\nPress 2, choose a profile and start it.")
        if server.foreign is not None:
            return Text(f"{server.name}: log unknown: it was not started by gpubox, but by hand, as pid {server.pid}.")
        if path is None:
            return Text(f"{server.name} has no log yet.\n\nIt gets one once it starts: press 2 to start it.")
        if status.extent.exists:
            return None if status.extent.end > status.extent.first else Text("The log is empty so far.")
        if server.is_live:
            return Text("The log's first line is awaited…")
        return Text(f"This log is not there any more: {path}\n\nPress , for an older start.")

    def _head(self, server: Server | None, path: Path | None, status: LogStatus, width: int, colours: Palette) -> Text:
        if server is None:
            return Text()
        text = Text.assemble((server.name, f"bold {colours.text}"), no_wrap=True)
        if path and self._starts:
            number = len(self._starts) - self._back
            which = f"start {number} of {len(self._starts)}"
            text.append(f"  {which}", colours.warn if self._back else colours.dim)
            text.append(f"  {moment(self._starts[self._back].at.timestamp())}", colours.dim)
        extent = status.extent
        if extent.exists:
            lines = f"{extent.end - extent.first:,} lines" + ("" if extent.is_whole else "…")
            text.append(f"  {lines}  {_size(extent.size_bytes)}", colours.dim)
        room = width - text.cell_len - 2
        if path and room > 20:
            text.append(f"  {fit_path(str(path), room)}", colours.dim)
        return text

    def _foot(self, view: LogView, status: LogStatus, width: int, colours: Palette) -> Text:
        if self._complaint:
            return Text(fit(self._complaint, width), colours.bad)
        left = Text(no_wrap=True)
        if status.following and self.server and self.server.is_live and not self._back:
            left.append("▼ following", colours.good)
        elif status.following:
            left.append("▼ the log ends here", colours.dim)
        elif status.new_lines:
            new = f"{status.new_lines:,} new line" + ("" if status.new_lines == 1 else "s")
            left.append(f"‖ {new} · G to follow", colours.warn)
        else:
            left.append("‖ paused · G to follow", colours.warn)
        right = Text(no_wrap=True)
        if status.matches is not None:
            rank = f"{status.match:,}" if status.match else NOTHING
            found = f"{rank} of {status.matches:,}" if status.matches else "no match"
            more = "…" if status.is_searching else ""
            right.append(f"/{fit(self._pattern, 24)}/ ", colours.text)
            right.append(f"{found}{more} · n N · Esc ends", colours.dim)
        elif not view.shows_whole:
            right.append("short lines · t shows them whole", colours.faint)
        return Text.assemble(left, " " * max(1, width - left.cell_len - right.cell_len), right, no_wrap=True)

    def _tell_stage(self, server: Server | None) -> None:
        stage = self.query_one("#stage", Static)
        text = stage_line(server, self.gpubox.now(), palette(self.app)) if server and not self._back else None
        stage.set_class(text is not None, "-shown")
        if text is not None:
            stage.update(text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only the keys that do something now."""
        if action == "start":
            return 0 <= self._back + (1 if parameters == (1,) else -1) < len(self._starts)
        if action == "next_match":
            return bool(self._pattern)
        return True

    def action_start(self, step: int) -> None:
        """Show the log of an older or newer start."""
        self._back += step
        self._open(self._starts[self._back].path)
        self.refresh_bindings()
        self._tell(self.server)

    def action_search(self) -> None:
        """Ask what to search for."""
        search = self.query_one("#search", Input)
        search.value = self._pattern
        search.add_class("-shown")
        search.focus()

    def action_next_match(self, direction: int) -> None:
        """Go to the next match below or above."""
        self.query_one(LogView).next_match(direction)

    def action_end_search(self) -> None:
        """Close the search; a second time, forget what was searched for."""
        search = self.query_one("#search", Input)
        was_open = search.has_class("-shown")
        self._close_search()
        if not was_open and self._pattern:
            self._search_for("", None)
        self._tell(self.server)

    @on(Input.Submitted, "#search")
    def _submitted(self, message: Input.Submitted) -> None:
        try:
            pattern = compiled(message.value) if message.value else None
        except re.error as problem:
            self._complaint = f"no regular expression: {problem}"
            self._tell(self.server)
            return
        self._close_search()
        self._search_for(message.value, pattern)

    @on(Input.Changed, "#search")
    def _typed(self) -> None:
        if self._complaint:
            self._complaint = ""
            self._tell(self.server)

    def _search_for(self, text: str, pattern: re.Pattern[str] | None) -> None:
        self._pattern = text
        self.query_one(LogView).search(pattern)
        self.refresh_bindings()

    def _close_search(self) -> None:
        self._complaint = ""
        self.query_one("#search", Input).remove_class("-shown")
        self.query_one(LogView).focus()


def _size(amount_bytes: int) -> str:
    return memory(amount_bytes) if amount_bytes >= MIB else f"{amount_bytes / 1024:.0f} KiB"


def compiled(text: str) -> re.Pattern[str]:
    """Compile what a person searches for; only a capital letter in it makes capitals matter. Raises re.error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # A FutureWarning would be printed across the screen.
        return re.compile(text, 0 if re.search(r"(?<!\\)[A-Z]", text) else re.IGNORECASE)


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
