"""Servers above, the profiles to start them from below; a large screen shows the selected one's log and figures too."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import DescendantFocus
from textual.widgets import DataTable, Static

from backends.errors import GpuboxError
from backends.snapshots import Metrics, Server, ServerState, Snapshot
from tui.actions import ENDING
from tui.screens.base import DETAILS_TOOLTIP, WIDE_CELLS, GpuboxScreen
from tui.sleeping import switch_of
from tui.themes import Palette, palette
from tui.widgets.live_text import LiveText, can_scroll, entitle
from tui.widgets.profile_table import ProfileRow, ProfileTable
from tui.widgets.server_details import profile_details, server_details
from tui.widgets.server_log import ServerLogTail
from tui.widgets.server_strip import ServerStrip
from tui.widgets.server_table import ServerTable

if TYPE_CHECKING:
    from profiles.store import Store

DETAILS_CELLS = 62
WALL_CELLS, WALL_LINES = 160, 40
"""From this size on log and figures of the selected server are shown as well."""

FILES_EVERY_S = 5.0
HISTORY_EVERY_S = 5.0
NO_SERVERS = "No server yet. Choose a profile below; {key} starts it."
NO_PROFILES = "No profile yet: gpubox profiles new NAME, or gpubox profiles import 'vllm serve …'"
RESTART_TOOLTIP = "Stop it, start it as it was started (asks if in use)"
STOP_TOOLTIP = "Drain and stop it (asks if in use); again: kill it"


class ServersScreen(GpuboxScreen):
    """Start, stop, restart, forget; details of what the cursor is on."""

    CSS_PATH = "../styles/servers.tcss"
    AUTO_FOCUS = "ServerTable"
    CHANGES = frozenset({"stop", "restart", "forget", "launch", "start", "switch", "sleep"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "switch", "Switch", id="server.switch", tooltip="Have it serve; what is in its way gives way"),
        Binding("z", "sleep", "Sleep", id="server.sleep", tooltip="Put it to sleep: its GPUs' memory comes back"),
        Binding("x", "stop(False)", "Stop", id="server.stop", tooltip=STOP_TOOLTIP),
        Binding("X", "stop(True)", "Kill", show=False, id="server.kill", tooltip="Kill it at once (asks if in use)"),
        Binding("r", "restart", "Restart", id="server.restart", tooltip=RESTART_TOOLTIP),
        Binding("f", "fix", "Fix", id="server.fix", tooltip="Why it failed, and what to change"),
        Binding("d,delete", "forget", "Forget", id="server.forget", tooltip="Drop it from the list; its logs stay"),
        Binding("l", "visit('logs')", "Logs", id="server.logs", tooltip="Its log"),
        Binding("c", "visit('chat')", "Chat", id="server.chat", tooltip="Chat with it"),
        Binding("m", "visit('metrics')", "Metrics", show=False, id="server.metrics", tooltip="Its figures over time"),
        Binding("ctrl+down", "scroll_details(1)", "Down", show=False, tooltip=DETAILS_TOOLTIP, id="details.down"),
        Binding("ctrl+up", "scroll_details(-1)", "Up", show=False, tooltip=DETAILS_TOOLTIP, id="details.up"),
        Binding("u", "use", "Use", id="server.use", tooltip="Copy its curl, ssh, base URL or launch line"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._profiles: tuple[ProfileRow, ...] = ()
        self._offered: object = None
        self._digests: Mapping[str, str] = {}
        self._is_wall = False
        self._asked_for: str | None = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="servers", classes="panel"):
            yield ServerTable()
            yield Static(NO_SERVERS.format(key=self.key_of("profile.launch")), id="no-servers", markup=False)
        yield ServerLogTail(id="tail")
        with VerticalScroll(id="details", classes="panel", can_focus=False):
            yield LiveText(id="about", wraps=True)
        yield ServerStrip(id="strip")
        with Vertical(id="profiles", classes="panel") as profiles:
            profiles.border_title = "Profiles"
            yield ProfileTable()
            yield Static(NO_PROFILES, id="no-profiles", markup=False)

    def on_mount(self) -> None:
        """Look at the profiles' files now and then, and read the history that the strip shows."""
        self.set_interval(FILES_EVERY_S, self._compare)
        self.set_interval(HISTORY_EVERY_S, self._read_history)

    def on_screen_resume(self) -> None:
        """Read the profiles again: somebody may have edited one."""
        self._read_profiles()
        self._compare()

    def on_resize(self) -> None:
        """Show more at once where there is room."""
        width, height = self.app.size
        self._is_wall = width >= WALL_CELLS and height >= WALL_LINES
        self.set_class(self._is_wall, "-wall")

    @work(group="profiles", exclusive=True)
    async def _read_profiles(self) -> None:
        self._profiles = await self.gpubox.profile_rows()
        self._changed()

    def _compare(self) -> None:
        wanted = {one.profile for one in self.gpubox.servers if one.profile_digest is not None and one.is_live}
        if self.is_current and wanted and self.gpubox.store is not None:
            self._read_digests(self.gpubox.store, wanted)

    @work(group="digests", exclusive=True)
    async def _read_digests(self, store: Store, names: set[str]) -> None:
        digests = await asyncio.to_thread(_digests, store, names)
        if digests != self._digests:
            self._digests = digests
            self._changed()

    def _is_changed(self, server: Server) -> bool:
        """Whether the file of a live server's profile is another now than when it was started, as far as known."""
        if server.profile_digest is None or not server.is_live:
            return False
        return self._digests.get(server.profile, server.profile_digest) != server.profile_digest

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show servers, profiles and details."""
        beside = not self._is_wall and self.app.size.width >= WIDE_CELLS
        # On a very low terminal the whole screen scrolls, and its bar takes its part.
        whole = self.app.size.width - self.scrollbar_size_vertical
        width = whole - 2 - (DETAILS_CELLS if beside else 0)
        table, profiles = self.query_one(ServerTable), self.query_one(ProfileTable)
        changed = frozenset(one.name for one in snapshot.servers if self._is_changed(one))
        table.follow(snapshot, width, self.gpubox.now(), changed)
        if server is not None:
            table.select(server.name)
        self.set_class(not snapshot.servers, "-no-servers")
        if not snapshot.servers and self.focused is table:
            profiles.focus()
        self.set_class(not self._profiles, "-no-profiles")
        live = sum(one.is_live for one in snapshot.servers)
        entitle(self.query_one("#servers"), f"Servers · {live} live" if live else "Servers")
        profiles.follow(self._profiles, DETAILS_CELLS - 3 if self._is_wall else width)
        room = DETAILS_CELLS if beside or self._is_wall else whole
        self._show_details(server, room - 3, palette(self.app))
        self._show_wall(server if self._is_wall else None)
        offered = (self.focused, server and (server.name, server.state))
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _show_details(self, server: Server | None, width: int, colours: Palette) -> None:
        profile = self._profile()
        panel, about = self.query_one("#details"), self.query_one("#about", LiveText)
        if isinstance(self.focused, ProfileTable) and profile is not None:
            entitle(panel, profile.name)
            about.show(profile_details(profile, width, colours))
        elif server is not None:
            entitle(panel, server.name)
            is_changed = self._is_changed(server)
            fix = self.key_of("server.fix")
            on = switch_of(self.gpubox.snapshot, server.name) if self.gpubox.snapshot else None
            now = self.gpubox.now()
            about.show(server_details(server, now, width, colours, changed=is_changed, fix_key=fix, on=on))
        else:
            entitle(panel, "")
            about.show(Text("Tab moves between servers and profiles.", style=colours.dim))

    def _show_wall(self, server: Server | None) -> None:
        """Show log and figures of `server`; None reads and draws nothing."""
        tail, strip = self.query_one(ServerLogTail), self.query_one(ServerStrip)
        if server is not None:
            entitle(tail, f"Log of {server.name} · {self.key_of('server.logs')} opens it")
            entitle(strip, f"{server.name} · {self.key_of('server.metrics')} shows more")
        tail.follow(server.log_path if server else None)
        strip.follow(server)
        if strip.lacks_history and self._asked_for != strip.server:
            self._read_history()

    def _read_history(self) -> None:
        server = self.server
        if not (self._is_wall and self.is_current and self.gpubox.trouble is None):
            return
        if server is not None and isinstance(server.metrics, Metrics):
            self._asked_for = server.name
            self._history(server.name)

    @work(group="history", exclusive=True)
    async def _history(self, name: str) -> None:
        try:
            series = await self.gpubox.link.server_series(name)
        except GpuboxError:
            return
        strip = self.query_one(ServerStrip)
        strip.take(name, series)
        if self._is_wall and self.is_current:
            strip.follow(self.server)

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
        if self.check_action("launch", ()):
            self.action_launch()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what the selected server's state allows."""
        if not super().check_action(action, parameters):
            return False
        if action == "scroll_details":
            return can_scroll(self.query_one("#details"), parameters[0])
        if action not in ("stop", "restart", "fix", "forget", "visit", "use", "switch", "sleep"):
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
            case "switch":
                return server.state is ServerState.SLEEPING or not server.is_live
            case "sleep":
                return server.can_sleep and server.state is ServerState.READY
            case "fix":
                return server.card is not None and not server.is_live
            case "forget":
                return not server.is_live
        return True

    def explained(self) -> tuple[str, ...]:
        """What the row of the selected server tells, what is special about it first."""
        server = self.server
        if server is None:
            return ()
        special = ["profile_changed"] if self._is_changed(server) else []
        if server.state is ServerState.STARTING:
            special += ["stage", "eta"]
        if server.state is ServerState.BACKOFF:
            special.append("attempt")
        if server.foreign is not None:
            special.append("foreign")
        if server.can_sleep:
            special += ["sleep", "sleep_level", *(("idle",) if server.idle else ()), "pinned", "switch"]
        row = ("state", "kv_cache_usage", "generation_tokens_per_s", "running", "waiting", "uptime", "port")
        details = ("max_model_len", "prefix_cache_hit_rate", "kv_cache_tokens", "ttft")
        return (*special, *row, *details)

    def action_launch(self) -> None:
        """Open the launch sheet for the profile under the cursor."""
        if (profile := self._profile()) is not None:
            self.gpubox.action_launch(profile.name)

    def action_start(self) -> None:
        """Have the profile under the cursor serve as it is; what is in its way gives way."""
        if (profile := self._profile()) is not None:
            self.gpubox.switch_to(profile.name, is_profile=True)

    def action_switch(self) -> None:
        """Have the selected server serve."""
        self.gpubox.action_switch_to()

    def action_sleep(self) -> None:
        """Put the selected server to sleep."""
        self.gpubox.action_sleep_server()

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
        """Offer the lines that a client of the selected server needs, and the one that starts it."""
        self.gpubox.action_use_server()

    def action_visit(self, mode: str) -> None:
        """Show the selected server in another mode."""
        self.app.switch_mode(mode)


def _digests(store: Store, names: set[str]) -> dict[str, str]:
    """Return the digests of these profiles' files as they are now; one that cannot be read is left out."""
    from profiles.errors import InvalidProfileError
    from profiles.store import digest_of

    found = {}
    for name in names:
        try:
            path, _ = store.find(name)
            found[name] = digest_of(Path(path).read_text(encoding="utf-8"))
        except (InvalidProfileError, OSError, ValueError):
            continue
    return found
