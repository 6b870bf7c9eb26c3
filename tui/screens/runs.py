"""What ran on this box: the newest events of its servers."""

from __future__ import annotations

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from backends.errors import GpuboxError
from backends.snapshots import Server, Snapshot
from tui.format import moment
from tui.screens.base import GpuboxScreen
from tui.themes import palette


class RunsScreen(GpuboxScreen):
    """The newest events, oldest first."""

    def compose(self) -> ComposeResult:
        """Make the list."""
        with VerticalScroll():
            yield Static(id="events")

    def on_screen_resume(self) -> None:
        """Ask anew."""
        self._read()

    @work(group="runs", exclusive=True)
    async def _read(self) -> None:
        try:
            events = await self.gpubox.link.history()
        except GpuboxError as problem:
            self.gpubox.complain(problem)
            return
        colours = palette(self.app)
        lines = [
            Text.assemble((f"{moment(one.at)}  ", colours.dim), (f"{one.server}  ", colours.accent), one.text)
            for one in events
        ]
        nothing = Text("Nothing has happened yet. Press 2, choose a profile and start it.", colours.dim)
        self.query_one("#events", Static).update(Text("\n").join(lines) if lines else nothing)

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Follow nothing: events are asked for when the screen is shown."""
