"""Servers above, the profiles to start them from below."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.widgets import DataTable, Static

from backends.snapshots import Server, ServerState, Snapshot
from tui.launching import LaunchIntent
from tui.screens.base import DETAILS_TOOLTIP, WIDE_CELLS, GpuboxScreen
from tui.themes import Palette, palette
from tui.widgets.profile_table import ProfileRow, ProfileTable
from tui.widgets.server_details import profile_details, server_details
from tui.widgets.server_table import ServerTable

DETAILS_CELLS = 62
NO_SERVERS = "No server yet. Choose a profile below; Enter starts it."
NO_PROFILES = "No profile yet: gpubox profiles new NAME, or gpubox profiles import 'vllm serve …'"
ENDING = (ServerState.DRAINING, ServerState.STOPPING)


class ServersScreen(GpuboxScreen):
    """Start, stop, restart, forget; details of what the cursor is on."""

    CSS_PATH = "../styles/servers.tcss"
    AUTO_FOCUS = "ServerTable"
    CHANGES = frozenset({"stop", "restart", "forget", "launch", "start"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "stop(False)", "Stop", id="server.stop", tooltip="Drain and stop it; again: kill it"),
        Binding("X", "stop(True)", "Kill", show=False, id="server.kill", tooltip="Kill it at once"),
        Binding("r", "restart", "Restart", id="server.restart", tooltip="Stop it, start it as it was started"),
        Binding("f", "fix", "Fix", id="server.fix", tooltip="Why it failed, and what to change"),
        Binding("d,delete", "forget", "Forget", id="server.forget", tooltip="Drop it from the list; its logs stay"),
        Binding("l", "visit('logs')", "Logs", id="server.logs", tooltip="Its log"),
        Binding("c", "visit('chat')", "Chat", id="server.chat", tooltip="Chat with it"),
        Binding("m", "visit('metrics')", "Metrics", show=False, id="server.metrics", tooltip="Its figures over time"),
        Binding("ctrl+down", "scroll_details(1)", "Down", show=False, tooltip=DETAILS_TOOLTIP, id="details.down"),
        Binding("ctrl+up", "scroll_details(-1)", "Up", show=False, tooltip=DETAILS_TOOLTIP, id="details.up"),
        Binding("u", "use", "Use", id="server.use", tooltip="Copy its curl, OPENAI_BASE_URL and ssh lines"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._profiles: tuple[ProfileRow, ...] = ()
        self._offered: object = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="servers", classes="panel"):
            yield ServerTable()
            yield Static(NO_SERVERS, id="no-servers", markup=False)
        with VerticalScroll(id="details", classes="panel", can_focus=False):
            yield Static(id="about")
        with Vertical(id="profiles", classes="panel") as profiles:
            profiles.border_title = "Profiles"
            yield ProfileTable()
            yield Static(NO_PROFILES, id="no-profiles", markup=False)

    def on_screen_resume(self) -> None:
        """Read the profiles again: somebody may have edited one."""
        self._read_profiles()

    @work(group="profiles", exclusive=True)
    async def _read_profiles(self) -> None:
        self._profiles = await self.gpubox.profile_rows()
        self._changed()

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show servers, profiles and details."""
        wide = self.app.size.width >= WIDE_CELLS
        width = self.app.size.width - 2 - (DETAILS_CELLS if wide else 0)
        table, profiles = self.query_one(ServerTable), self.query_one(ProfileTable)
        table.follow(snapshot, width, self.gpubox.now())
        if server is not None:
            table.select(server.name)
        self.set_class(not snapshot.servers, "-no-servers")
        if not snapshot.servers and self.focused is table:
            profiles.focus()
        self.set_class(not self._profiles, "-no-profiles")
        live = sum(one.is_live for one in snapshot.servers)
        self.query_one("#servers").border_title = f"Servers · {live} live" if live else "Servers"
        profiles.follow(self._profiles, width)
        self._show_details(server, (DETAILS_CELLS if wide else self.app.size.width) - 3, palette(self.app))
        offered = (self.focused, server and (server.name, server.state))
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _show_details(self, server: Server | None, width: int, colours: Palette) -> None:
        profile = self._profile()
        panel, about = self.query_one("#details"), self.query_one("#about", Static)
        if isinstance(self.focused, ProfileTable) and profile is not None:
            panel.border_title = profile.name
            about.update(profile_details(profile, width, colours))
        elif server is not None:
            panel.border_title = server.name
            about.update(server_details(server, self.gpubox.now(), width, colours))
        else:
            panel.border_title = ""
            about.update(Text("Tab moves between servers and profiles.", style=colours.dim))

    def _profile(self) -> ProfileRow | None:
        name = self.query_one(ProfileTable).cursor_key
        return next((profile for profile in self._profiles if profile.name == name), None)

    @on(DataTable.RowHighlighted, "ServerTable")
    def _select(self, message: DataTable.RowHighlighted) -> None:
        table = self.query_one(ServerTable)
        if table.has_focus and table.cursor_key == message.row_key.value:
            self.gpubox.selected = table.cursor_key

    @on(DataTable.RowHighlighted, "ProfileTable")
    @on(DescendantFocus)
    def _look(self) -> None:
        self._changed()

    @on(DataTable.RowSelected, "ProfileTable")
    def _clicked(self) -> None:
        self.action_launch()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what the selected server's state allows."""
        if not super().check_action(action, parameters):
            return False
        if action not in ("stop", "restart", "fix", "forget", "visit", "use"):
            return True
        server = self.server
        if server is None or isinstance(self.focused, ProfileTable):
            return False
        if server.foreign is not None and action in self.CHANGES:
            return False
        match action:
            case "stop" | "use":
                return server.is_live
            case "restart":
                return server.state not in ENDING
            case "fix":
                return server.card is not None and not server.is_live
            case "forget":
                return not server.is_live
        return True

    def action_launch(self) -> None:
        """Open the launch sheet for the profile under the cursor."""
        if (profile := self._profile()) is not None:
            self.gpubox.action_launch(profile.name)

    def action_start(self) -> None:
        """Start the profile under the cursor as it is."""
        if (profile := self._profile()) is not None:
            self.gpubox.begin(LaunchIntent(profile.name))

    def action_scroll_details(self, lines: int) -> None:
        """Show what the panel has no room for."""
        self.query_one("#details").scroll_relative(y=lines, animate=False)

    def action_stop(self, force: bool) -> None:
        """Stop the selected server."""
        self.gpubox.action_stop_server(force=force)

    def action_restart(self) -> None:
        """Restart the selected server."""
        self.gpubox.action_restart_server()

    def action_fix(self) -> None:
        """Show the selected server's crash card."""
        self.gpubox.action_fix_server()

    def action_forget(self) -> None:
        """Forget the selected server."""
        self.gpubox.action_forget_server()

    def action_use(self) -> None:
        """Copy how to use the selected server."""
        self.gpubox.action_use_server()

    def action_visit(self, mode: str) -> None:
        """Show the selected server in another mode."""
        self.app.switch_mode(mode)
