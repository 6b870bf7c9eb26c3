"""The box: every GPU, whose memory it is, and the host."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Static

from backends.errors import GpuboxError
from backends.snapshots import Box, Server, Snapshot
from tui.format import plural
from tui.screens.base import DETAILS_TOOLTIP, GpuboxScreen
from tui.themes import STATES, Palette, palette
from tui.widgets.gpu_details import GpuDetails
from tui.widgets.gpu_table import GpuTable
from tui.widgets.host_line import box_line, host_line
from tui.widgets.status_bar import describe

HISTORY_EVERY_S = 5.0


class BoxScreen(GpuboxScreen):
    """Host and GPUs above, the GPU under the cursor below."""

    CSS_PATH = "../styles/box.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+down", "scroll_details(1)", "Down", show=False, tooltip=DETAILS_TOOLTIP, id="details.down"),
        Binding("ctrl+up", "scroll_details(-1)", "Up", show=False, tooltip=DETAILS_TOOLTIP, id="details.up"),
    ]

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield Static(id="host")
        yield GpuTable()
        yield GpuDetails()
        yield Static(id="no-gpu")

    def __init__(self) -> None:
        super().__init__()
        self._asked_for: str | None = None

    def on_mount(self) -> None:
        """Keep the history of the GPU under the cursor fresh."""
        self.set_interval(HISTORY_EVERY_S, self._read_history)

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show every GPU."""
        width, colours = self.app.size.width - 2, palette(self.app)
        lines = [box_line(snapshot.box, width, colours), host_line(snapshot.box.host, width, colours)]
        self.query_one("#host", Static).update(Text("\n").join(lines if snapshot.box.gpus else lines[1:]))
        self.set_class(not snapshot.box.gpus, "-no-gpu")
        if not snapshot.box.gpus:
            self.query_one("#no-gpu", Static).update(no_gpu(snapshot.box, snapshot.servers, colours))
            return
        table = self.query_one(GpuTable)
        table.follow(snapshot, width)
        self._show_details(snapshot, table.cursor_key)

    def _show_details(self, snapshot: Snapshot, uuid: str | None) -> None:
        details = self.query_one(GpuDetails)
        details.follow(snapshot, uuid)
        if details.lacks_history and self._asked_for != uuid:
            self._read_history()

    def action_scroll_details(self, lines: int) -> None:
        """Show what the panel has no room for."""
        self.query_one(GpuDetails).scroll_relative(y=lines, animate=False)

    @on(DataTable.RowHighlighted)
    def _other_gpu(self, message: DataTable.RowHighlighted) -> None:
        if self.gpubox.snapshot is not None:
            self._show_details(self.gpubox.snapshot, message.row_key.value)

    def _read_history(self) -> None:
        details = self.query_one(GpuDetails)
        if self.is_current and details.uuid is not None and self.gpubox.trouble is None:
            self._asked_for = details.uuid
            self._history(details.uuid)

    @work(group="history", exclusive=True)
    async def _history(self, uuid: str) -> None:
        try:
            series = await self.gpubox.link.gpu_series(uuid)
        except GpuboxError:
            return
        details = self.query_one(GpuDetails)
        details.take(uuid, series)
        if self.gpubox.snapshot is not None:
            details.follow(self.gpubox.snapshot, details.uuid)


def no_gpu(box: Box, servers: tuple[Server, ...], colours: Palette) -> Text:
    """Say plainly that there is no GPU, why, and what works all the same."""
    text = Text.assemble(
        ("This box has no GPU that gpubox can use.\n", f"bold {colours.text}"),
        (f"{box.no_gpus or 'none was found'}\n\n", colours.warn),
        ("Servers can run on the CPU: press ", colours.text),
        ("2", f"bold {colours.primary}"),
        (", choose a profile, and start it.\n\n", colours.text),
    )
    live = [server for server in servers if server.is_live]
    text.append(f"{plural(len(live), 'server')} on the CPU now" if live else "No server runs now.", colours.dim)
    for server in live:
        sign, colour = STATES[server.state][0], colours.state(server.state)
        text.append(f"\n{sign} ", colour).append(f"{server.name:<24}", colours.text)
        text.append(f"{describe(server):<16}", colour).append(server.address, colours.dim)
    return text
