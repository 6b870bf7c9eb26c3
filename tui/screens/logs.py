"""Logs: a server's log as it is written, earlier starts', several servers' merged; filtered, searched, copied."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from backends import paths
from backends.logs.text import LEVELS
from backends.processes.logs import LogStart, log_starts
from backends.snapshots import Server, Snapshot
from tui.format import fit, moment
from tui.keymap import key_of
from tui.screens.base import GpuboxScreen
from tui.screens.chooser import ChooserScreen
from tui.themes import Palette, palette
from tui.widgets.live_text import LiveText
from tui.widgets.log_lines import (
    beside,
    compiled,
    empty_text,
    extent_text,
    finding_text,
    path_text,
    stage_line,
    standing_text,
)
from tui.widgets.log_view import LogView

SEARCH_HINT = "regular expression · small letters match capitals too"
TIME_HINT = "14:03 · 14:03:20 · 11-21 14:03 · -5m before the end"
COMPLAINT_S = 5.0


class LogsScreen(GpuboxScreen):
    """One log from its end backwards, or several merged; `,` and `.` go through the starts, `s` lists them."""

    CSS_PATH = "../styles/logs.tcss"
    AUTO_FOCUS = "LogView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "Search", id="logs.search", tooltip="Search with a regular expression"),
        Binding("n", "next_match(1)", "Next", id="logs.next", tooltip="Go to the next match below"),
        Binding("N", "next_match(-1)", "Before", id="logs.previous", tooltip="Go to the match before"),
        Binding("v", "level", "Level", id="logs.level", tooltip="Only from INFO, WARNING, ERROR, CRITICAL on, or all"),
        Binding("p", "process", "Process", id="logs.process", tooltip="Only lines of some of its processes"),
        Binding("E", "error", "Error", id="logs.error", tooltip="Go to the first error, from there to the next"),
        Binding("at", "time", "Time", id="logs.time", tooltip="Go to a time: 14:03, or -5m"),
        Binding("s", "starts", "Starts", id="logs.starts", tooltip="Choose the log of an earlier start"),
        Binding("comma", "start(1)", "Older start", show=False, id="logs.older", tooltip="Show the start before"),
        Binding("full_stop", "start(-1)", "Newer start", show=False, id="logs.newer", tooltip="Show the next start"),
        Binding(
            "m", "merge", "Merge", show=False, id="logs.merge", tooltip="Show several servers' logs as one, by time"
        ),
        Binding("escape", "end", "End search", id="logs.end_search", tooltip="End search, then filter"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, str | None] | None = None
        self._starts: list[LogStart] = []
        self._back = 0
        self._pinned: Path | None = None
        self._merged: tuple[str, ...] = ()
        self._pattern = ""
        self._complaint = ""
        self._asks_time = False

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield LiveText(id="head")
        yield LogView(id="log")
        yield LiveText(id="empty", wraps=True)
        yield LiveText(id="stage")
        yield Input(id="search")
        yield LiveText(id="foot")

    @property
    def _view(self) -> LogView:
        return self.query_one(LogView)

    def on_mount(self) -> None:
        """Show nothing as long as nothing is known; keep a stage's time running."""
        self._view.display = self.query_one("#search").display = False
        self.query_one("#empty", LiveText).show(Text("Waiting for the keeper…"))
        self.set_interval(1.0, self._tick)

    def on_screen_suspend(self) -> None:
        """Read nothing while another screen is on top."""
        self._view.pause(paused=True)

    def on_screen_resume(self) -> None:
        """Go on reading."""
        self._view.pause(paused=False)

    def open_start(self, path: Path) -> None:
        """Show the log at `path`, an earlier start's or a run's, until another server is selected; mounted or not."""
        self._pinned, self._merged = path, ()
        if self.is_mounted:
            self._changed()

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the selected server's newest log, or what was chosen in its place."""
        shown = (server.name, server.log_path) if server else None
        if shown != self._shown:
            is_other = self._shown is None or server is None or server.name != self._shown[0]
            was_none, self._shown = self._shown is None, shown
            if is_other:
                self._starts, self._back, self._merged = [], 0, ()
                self._pinned = self._pinned if was_none else None
            if server is not None and server.foreign is None:
                self._find_starts(server)
        if self._merged:
            self._open_merged(snapshot)
        elif self._pinned is not None:
            self._open(self._pinned)
        elif self._back == 0:
            self._open(Path(server.log_path) if server and server.log_path else None)
        self._tell(server)

    @work(group="starts", exclusive=True)
    async def _find_starts(self, server: Server) -> None:
        folder = Path(server.log_path).parent if server.log_path else paths.log_dir()
        try:
            starts = await asyncio.to_thread(log_starts, folder, server.name)
        except OSError:
            starts = []  # The log that is shown says why it cannot be read.
        if self._shown is None or self._shown[0] != server.name:
            return  # Another one is looked at by now.
        self._starts, chosen = starts, self._view.path
        found = [number for number, start in enumerate(self._starts) if start.path == chosen]
        self._back = found[0] if found else 0
        if chosen is None and self._starts:
            self._pinned = self._starts[0].path
            self._open(self._pinned)
        self.refresh_bindings()
        self._tell(self.server)

    def _open(self, path: Path | None) -> None:
        if self._view.paths != ((path,) if path else ()):
            self._view.open(path)
            self.refresh_bindings()

    def _open_merged(self, snapshot: Snapshot) -> None:
        logs = {one.name: Path(one.log_path) for one in snapshot.servers if one.log_path and one.name in self._merged}
        if self._view.paths != tuple(logs.values()):
            self._view.open(list(logs.values()), list(logs))
            self.refresh_bindings()

    def _tick(self) -> None:
        if self.is_current and self.server is not None and self.server.stage is not None:
            self._tell_stage(self.server)

    @on(LogView.Changed)
    def _follow_view(self) -> None:
        self._tell(self.server)

    @on(LogView.Complained)
    def _complain(self, message: LogView.Complained) -> None:
        self._complaint = message.text
        self._tell(self.server)
        self.refresh_bindings()
        self.set_timer(COMPLAINT_S, lambda: self._uncomplain(message.text))

    def _uncomplain(self, text: str) -> None:
        if self._complaint == text:
            self._complaint = ""
            self._tell(self.server)

    def _tell(self, server: Server | None) -> None:
        """Say where one is and what there is to see."""
        view = self._view
        empty = empty_text(server, view, self._pinned, self._key)
        view.display = not empty
        self.query_one("#empty").display = bool(empty)
        if empty:
            self.query_one("#empty", LiveText).show(empty)
        width, colours = self.app.size.width - 2, palette(self.app)
        self.query_one("#head", LiveText).show(self._head(server, view, width, colours))
        self.query_one("#foot", LiveText).show(self._foot(view, width, colours))
        self._tell_stage(server)

    def _head(self, server: Server | None, view: LogView, width: int, colours: Palette) -> Text:
        text = Text(no_wrap=True)
        if self._merged:
            text.append(fit(" + ".join(self._merged), width // 2), f"bold {colours.text}")
        elif server is not None and (self._pinned is None or self._starts):
            text.append(server.name, f"bold {colours.text}")
            if view.path and self._starts:
                number = len(self._starts) - self._back
                text.append(f"  start {number} of {len(self._starts)}", colours.warn if self._back else colours.dim)
                text.append(f"  {moment(self._starts[self._back].at.timestamp())}", colours.dim)
        elif self._pinned is not None:
            text.append(self._pinned.stem, f"bold {colours.text}")
        else:
            return text
        text.append_text(extent_text(view.extent, view.rule, colours))
        if view.path and not self._merged:
            text.append_text(path_text(view.path, width - text.cell_len, colours))
        return text

    def _foot(self, view: LogView, width: int, colours: Palette) -> Text:
        if self._complaint:
            return Text(fit(self._complaint, width), colours.bad)
        status, server = view.status, self.server
        is_live = bool(server and server.is_live and not self._back and self._pinned is None)
        left = standing_text(status, is_live=is_live or bool(self._merged), colours=colours, key=self._key)
        return beside(left, finding_text(status, self._pattern, colours, self._key), width)

    def _key(self, name: str) -> str:
        return key_of(self.app, name)

    def _tell_stage(self, server: Server | None) -> None:
        stage = self.query_one("#stage", LiveText)
        is_its_own = server and not self._back and self._pinned is None and not self._merged
        text = stage_line(server, self.gpubox.now(), palette(self.app)) if server and is_its_own else None
        stage.set_class(text is not None, "-shown")
        if text is not None:
            stage.show(text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only the keys that do something now."""
        view = self._view if self.is_mounted else None
        if action == "start":
            wanted = self._back + (1 if parameters == (1,) else -1)
            return not self._merged and 0 <= wanted < len(self._starts)
        if action == "starts":
            return len(self._starts) > 1
        if action == "merge":
            return len(self._mergeable()) > 1
        if action == "next_match":
            return bool(self._pattern)
        if action in ("search", "level", "process", "error", "time"):
            return view is not None and bool(view.paths) and not self._is_asking
        if action == "end":
            status = view.status if view else None
            is_busy = status is not None and (status.is_marking or status.is_looking)
            is_filtered = view is not None and view.rule != (0, ())
            return bool(self._pattern or self._complaint or is_filtered or is_busy or self._is_asking)
        return super().check_action(action, parameters)

    @property
    def _is_asking(self) -> bool:
        return self.is_mounted and bool(self.query_one("#search").display)

    def _mergeable(self) -> list[str]:
        return [one.name for one in self.gpubox.servers if one.log_path and one.foreign is None]

    def action_start(self, step: int) -> None:
        """Show the log of an older or newer start."""
        self._show_start(self._back + step)

    def _show_start(self, back: int) -> None:
        self._back, self._merged = back, ()
        server = self.server
        path = self._starts[back].path
        is_newest = server is not None and server.log_path == str(path)
        self._pinned = None if is_newest else path
        self._open(path)
        self.refresh_bindings()
        self._tell(server)

    def action_starts(self) -> None:
        """Choose one of the server's starts."""
        starts = self._starts
        rows = [
            f"start {len(starts) - number}  {moment(one.at.timestamp())}  {one.path.name}"
            for number, one in enumerate(starts)
        ]

        def take(places: tuple[int, ...] | None) -> None:
            # A start that has begun meanwhile has moved the others on.
            if places and starts[places[0]] in self._starts:
                self._show_start(self._starts.index(starts[places[0]]))

        self.app.push_screen(ChooserScreen("Which start's log", rows, at=self._back), take)

    def action_merge(self) -> None:
        """Choose whose logs to show as one."""
        names = self._mergeable()
        now = self._merged or ((self.gpubox.selected,) if self.gpubox.selected else ())

        def chosen(places: tuple[int, ...] | None) -> None:
            if places is None:
                return
            self._merged = tuple(names[place] for place in places) if len(places) > 1 else ()
            self._pinned, self._back = None, 0
            self._changed()

        marked = [number for number, name in enumerate(names) if name in now]
        self.app.push_screen(ChooserScreen("Merge the logs of", names, several=True, marked=marked), chosen)

    def action_level(self) -> None:
        """Show only lines from the next level on, or all again."""
        level, names = self._view.rule
        self._filter((max(level, 1) + 1) if level < len(LEVELS) else 0, names)

    def action_process(self) -> None:
        """Choose which processes' lines to show."""
        (level, chosen), known = self._view.rule, self._view.extent.processes
        names = sorted({*known, *chosen})

        def take(places: tuple[int, ...] | None) -> None:
            if places is not None:
                picked = tuple(names[place] for place in places)
                self._filter(level, () if len(picked) == len(names) else picked)

        if names:
            marked = [number for number, name in enumerate(names) if name in chosen]
            self.app.push_screen(ChooserScreen("Only lines of", names, several=True, marked=marked), take)
        else:
            self._complaint = "no line in here names its process"
            self._tell(self.server)

    def _filter(self, level: int, processes: tuple[str, ...]) -> None:
        self._complaint = ""
        self._view.filter(level, processes)
        self.refresh_bindings()
        self._tell(self.server)

    def action_error(self) -> None:
        """Go to the first error, from there to the next."""
        self._view.first_error()

    def action_search(self) -> None:
        """Ask what to search for."""
        self._ask(self._pattern, SEARCH_HINT, is_time=False)

    def action_time(self) -> None:
        """Ask for a time to go to."""
        self._ask("", TIME_HINT, is_time=True)

    def _ask(self, value: str, hint: str, *, is_time: bool) -> None:
        self._complaint, self._asks_time = "", is_time
        ask = self.query_one("#search", Input)
        ask.value, ask.placeholder = value, f"{hint} · Enter · {self._key('logs.end_search')}"
        ask.display = True
        self.set_focus(ask)  # At once: what is typed right after must not be taken for keys.

    def action_next_match(self, direction: int) -> None:
        """Go to the next match below or above."""
        self._view.next_match(direction)

    def action_end(self) -> None:
        """Close what is open: the question, marking, the search, then the filter."""
        if self._is_asking or self._complaint:
            self._close()
        elif self._view.end_marking() or (not self._pattern and self._view.stop_looking()):
            pass
        elif self._pattern:
            self._search_for("", None)
        else:
            self._filter(0, ())
        self.refresh_bindings()
        self._tell(self.server)

    @on(Input.Submitted, "#search")
    def _submitted(self, message: Input.Submitted) -> None:
        if self._asks_time:
            self._close()
            if message.value.strip():
                self._view.go_to_time(message.value)
            return
        try:
            pattern = compiled(message.value) if message.value else None
        except re.error as problem:
            self._complaint = f"no regular expression: {problem}"
            self._tell(self.server)
            return
        self._close()
        self._search_for(message.value, pattern)

    @on(Input.Changed)
    def _typed(self) -> None:
        if self._complaint:
            self._complaint = ""
            self._tell(self.server)

    def _search_for(self, text: str, pattern: re.Pattern[str] | None) -> None:
        self._pattern = text
        self._view.search(pattern)
        self.refresh_bindings()

    def _close(self) -> None:
        self._complaint = ""
        self.query_one("#search").display = False
        self.set_focus(self._view)
