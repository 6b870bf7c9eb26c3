"""What ran on this box: the launches on record, newest first, and all about the one under the cursor."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable

from backends.errors import GpuboxError
from backends.records import Launch
from backends.snapshots import Server, Snapshot
from tui.screens.base import DETAILS_TOOLTIP, WIDE_CELLS, GpuboxScreen
from tui.themes import palette
from tui.widgets.live_text import LiveText, can_scroll, keep_focus
from tui.widgets.run_details import run_details
from tui.widgets.run_table import RunTable

DETAILS_CELLS = 62
READING = "Reading the records …"
EMPTY = "No launch is on record yet. Press {servers}, choose a profile, and start it with {launch}."
NO_MATCH = "No launch matches. {clear} shows all again."
LATER = "Load tests and fine-tunings come with a later version, and will stand here."
FIGURES = ("weights", "activation", "other_memory", "cuda_graphs", "kv_cache", "max_concurrency")


class RunsScreen(GpuboxScreen):
    """Launches above, details below or beside; filters by server and outcome."""

    CSS_PATH = "../styles/runs.tcss"
    AUTO_FOCUS = "RunTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "filter_server", "Server", id="runs.server", tooltip="Show the launches of one server, or of all"),
        Binding("o", "filter_outcome", "Outcome", id="runs.outcome", tooltip="Show launches that ended in one way"),
        Binding("escape", "clear", "All", id="runs.clear", tooltip="Show all launches again"),
        Binding("ctrl+down", "scroll_details(1)", "Down", show=False, tooltip=DETAILS_TOOLTIP, id="details.down"),
        Binding("ctrl+up", "scroll_details(-1)", "Up", show=False, tooltip=DETAILS_TOOLTIP, id="details.up"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._launches: tuple[Launch, ...] | None = None
        self._problem = ""
        self._logs: frozenset[str] = frozenset()
        self._server: str | None = None
        self._outcome: str | None = None
        self._read_for: object = None
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="launches", classes="panel"):
            yield RunTable()
            yield LiveText(id="no-launches", wraps=True)
        with VerticalScroll(id="details", classes="panel", can_focus=False):
            yield LiveText(id="about", wraps=True)
        yield LiveText(id="later", wraps=True)

    def on_mount(self) -> None:
        """Say what is not here yet."""
        self.query_one("#later", LiveText).show(Text(LATER, style=palette(self.app).dim))

    def on_screen_suspend(self) -> None:
        """Have the records read again when one comes back."""
        self._read_for = None

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Read the records again where a server's state is another, and show them."""
        states = tuple((one.name, one.state, one.launched_at) for one in snapshot.servers if one.foreign is None)
        if states != self._read_for:
            self._read_for = states
            self._read()
        self._draw()

    @work(group="runs", exclusive=True)
    async def _read(self) -> None:
        try:
            launches = await self.gpubox.link.launches()
            logs = await asyncio.to_thread(_kept, launches)
        except GpuboxError as problem:
            self._launches, self._problem = (), problem.message
            self.gpubox.complain(problem)
        else:
            self._launches, self._logs, self._problem = launches, logs, ""
        self._changed()

    @property
    def _matching(self) -> tuple[Launch, ...]:
        return tuple(
            launch
            for launch in self._launches or ()
            if self._server in (None, launch.server) and self._outcome in (None, launch.outcome)
        )

    @property
    def _launch(self) -> Launch | None:
        key = self.query_one(RunTable).cursor_key
        return next((launch for launch in self._matching if launch.id == key), None)

    def _draw(self) -> None:
        """Draw what has changed; times of launches that go on grow by the minute."""
        table, minute = self.query_one(RunTable), self.gpubox.now() // 60
        matching, colours = self._matching, palette(self.app)
        drawn = (self._launches, self._logs, self._server, self._outcome, minute, self.app.size, colours)
        if drawn != self._drawn:
            self._drawn = drawn
            wide = self.app.size.width >= WIDE_CELLS
            table.follow(matching, self.app.size.width - 2 - (DETAILS_CELLS if wide else 0), self.gpubox.now())
            self.set_class(not matching, "-empty")
            self.set_focus(keep_focus(self.focused, table, shown=bool(matching)))
            self.query_one("#no-launches", LiveText).show(Text(self._why_empty(), style=colours.dim))
            self.query_one("#launches").border_title = self._title(len(matching))
            self.refresh_bindings()
        self._show_details()

    def _title(self, count: int) -> str:
        parts = [f"{count} launch" + ("" if count == 1 else "es"), self._server, self._outcome]
        return " · ".join(part for part in parts if part)

    def _why_empty(self) -> str:
        if self._launches is None:
            return READING
        if self._problem:
            return self._problem
        if self._launches:
            return NO_MATCH.format(clear=self.key_of("runs.clear"))
        return EMPTY.format(servers=self.key_of("mode.servers"), launch=self.key_of("profile.launch"))

    def _show_details(self) -> None:
        launch, panel = self._launch, self.query_one("#details")
        if launch is None:
            return
        width = (DETAILS_CELLS if self.app.size.width >= WIDE_CELLS else self.app.size.width) - 3
        panel.border_title = launch.server
        text = run_details(launch, self.gpubox.now(), width, palette(self.app), has_log=launch.log_path in self._logs)
        self.query_one("#about", LiveText).show(text)

    @on(DataTable.RowHighlighted)
    def _look(self) -> None:
        self.query_one("#details").scroll_home(animate=False)
        self._show_details()
        self.refresh_bindings()

    @on(DataTable.RowSelected)
    def _selected(self) -> None:
        if self.check_action("log", ()):
            self.action_log()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what does something with the launches that there are."""
        if not super().check_action(action, parameters):
            return False
        match action:
            case "scroll_details":
                return can_scroll(self.query_one("#details"), parameters[0])
            case "log":
                launch = self._launch
                return launch is not None and launch.log_path in self._logs
            case "filter_server" | "filter_outcome":
                return bool(self._launches)
            case "clear":
                return self._server is not None or self._outcome is not None
        return True

    def action_log(self) -> None:
        """Show the log of the launch under the cursor."""
        if (launch := self._launch) is not None:
            self._open_log(launch)

    @work(group="log", exclusive=True)
    async def _open_log(self, launch: Launch) -> None:
        from tui.screens.logs import LogsScreen

        if self.gpubox.named(launch.server) is not None:
            self.gpubox.selected = launch.server
        await self.app.switch_mode("logs")
        screen = self.app.screen
        if isinstance(screen, LogsScreen):
            screen.call_after_refresh(screen.open_start, Path(launch.log_path))

    def action_filter_server(self) -> None:
        """Show the launches of the next server, after the last one of all."""
        self._server = _next(self._server, sorted({launch.server for launch in self._launches or ()}))
        self._draw()

    def action_filter_outcome(self) -> None:
        """Show the launches with the next outcome, after the last one all."""
        self._outcome = _next(self._outcome, sorted({launch.outcome for launch in self._launches or ()}))
        self._draw()

    def action_clear(self) -> None:
        """Show all launches."""
        self._server = self._outcome = None
        self._draw()

    def action_scroll_details(self, lines: int) -> None:
        """Show what the panel has no room for."""
        self.query_one("#details").scroll_relative(y=lines, animate=False)

    def explained(self) -> tuple[str, ...]:
        """What the details of the launch under the cursor tell."""
        launch = self._launch
        if launch is None:
            return ()
        return ("state", "stage", *(FIGURES if launch.figures is not None else ()))


def _kept(launches: tuple[Launch, ...]) -> frozenset[str]:
    """Return the paths of the logs that are still there."""
    return frozenset(path for path in {launch.log_path for launch in launches} if path and Path(path).exists())


def _next(now: str | None, choices: list[str]) -> str | None:
    """Return the choice after `now`; None, which is all, comes after the last."""
    if now not in choices:
        return choices[0] if choices else None
    return (*choices, None)[choices.index(now) + 1]
