"""The line on top of every screen: where one is, which server is selected, and whether the keeper is heard."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.events import Click

from backends.snapshots import Server, ServerState
from tui.format import duration, fit, percent
from tui.progress import start_text, wedged_text
from tui.themes import STATES, Palette, palette
from tui.widgets.live_text import LiveText

if TYPE_CHECKING:
    from tui.app import GpuboxApp

BRAND = " gpubox "
SIMULATED = " SIMULATED "
READ_ONLY = " READ-ONLY "
ROOMY_CELLS = 100
"""From here on tabs stand apart, and the box has its name on the line."""


class StatusBar(Vertical):
    """gpubox, the box, the modes, SIMULATED where it is, the selected server; below it the keeper's trouble, if any."""

    DEFAULT_CSS = """
    StatusBar { dock: top; height: auto; }
    StatusBar #line { height: 1; background: $panel; }
    StatusBar #trouble { height: 1; background: $error; color: $background; text-style: bold; display: none; }
    """

    @property
    def gpubox(self) -> GpuboxApp:
        """The app, with its own type."""
        return cast("GpuboxApp", self.app)

    def compose(self) -> ComposeResult:
        """Make the two lines."""
        yield LiveText(id="line")
        yield LiveText(id="trouble")

    def on_mount(self) -> None:
        """Follow the app's state, and let the age of old data grow."""
        for name in ("snapshot", "selected", "trouble", "theme"):
            self.watch(self.app, name, self.follow, init=False)
        self.set_interval(1.0, self._grow_older)

    def on_resize(self) -> None:
        """Lay the line out for the new width."""
        self.follow()

    def follow(self) -> None:
        """Show the newest state, unless nobody looks."""
        if not self.screen.is_current:
            return
        width = self.app.size.width
        self.query_one("#line", LiveText).show(status_line(self.gpubox, width, palette(self.app)))
        trouble = self.query_one("#trouble", LiveText)
        trouble.display = self.gpubox.trouble is not None
        if self.gpubox.trouble is not None:
            trouble.show(Text(fit(_trouble(self.gpubox), width), no_wrap=True))

    def on_click(self, click: Click) -> None:
        """Switch to the mode whose tab was clicked."""
        x = click.screen_x - len(BRAND)
        for mode, tab in _tabs(self.gpubox).items():
            if 0 <= x < len(tab):
                self.app.switch_mode(mode)
            x -= len(tab)

    def _grow_older(self) -> None:
        if self.gpubox.trouble is not None:
            self.follow()


def status_line(app: GpuboxApp, width: int, colours: Palette) -> Text:
    """Build the line for `width` cells: what does not fit goes, the box's name first, the server's state next."""
    snapshot = app.snapshot
    left = Text.assemble((BRAND, f"bold {colours.accent}"))
    tabs = Text()
    for mode, tab in _tabs(app).items():
        tabs.append(tab, f"bold reverse {colours.primary}" if mode == app.current_mode else colours.dim)
    badge = Text()
    if app.simulated or (snapshot is not None and snapshot.box.simulated):
        badge = Text(SIMULATED, style=f"bold reverse {colours.warn}")
    if app.readonly:
        badge = Text.assemble(badge, (READ_ONLY, f"bold reverse {colours.primary}"))
    room = width - left.cell_len - tabs.cell_len - badge.cell_len
    host = f"{snapshot.box.host.hostname} " if snapshot else ""
    server = next((s for s in app.servers if s.name == app.selected), None)
    right = _selected(server, app.now(), colours, room - len(host) - 3) if server else Text()
    if room - len(host) - right.cell_len >= 3 and width >= ROOMY_CELLS:
        tabs.append(f"  {host}", style=colours.text)
        room -= len(host) + 2
    elif server is not None:
        right = _selected(server, app.now(), colours, room - 1)
    if snapshot is None and app.trouble is None:
        right = Text("asking the keeper … ", style=colours.dim)
    return Text.assemble(left, tabs, " " * max(0, room - right.cell_len), right, badge, no_wrap=True)


def _tabs(app: GpuboxApp) -> dict[str, str]:
    end = " " if app.size.width >= ROOMY_CELLS else ""
    return {mode: f" {number} {title}{end}" for number, (mode, (title, _)) in enumerate(app.PANELS.items(), start=1)}


def _selected(server: Server, now: float, colours: Palette, room: int) -> Text:
    sign, _ = STATES[server.state]
    colour = colours.warn if _is_wedged(server) else colours.state(server.state)
    said = describe(server)
    for words in (_progress(server, now), said):
        text = Text.assemble((f"{sign} ", colour), (server.name, colours.text), (f" {words}", colour), " ")
        if words and text.cell_len <= room:
            return text
    return (
        Text.assemble((f"{sign} ", colour), (fit(server.name, max(0, room - 3)), colours.text), " ")
        if room > 4
        else Text()
    )


def describe(server: Server) -> str:
    """Say a server's state in one or two words: 'ready', 'weights 63%', 'looks wedged'."""
    if _is_wedged(server):
        return "looks wedged"
    if server.state is ServerState.STARTING and server.stage is not None:
        progress = f" {percent(server.stage.progress)}" if server.stage.progress is not None else ""
        return server.stage.name + progress
    return server.state.value


def _progress(server: Server, now: float) -> str:
    """Say what is left of a start, or what it looks stuck on; empty where it does not start."""
    if server.progress is not None and _is_wedged(server):
        return wedged_text(server.progress)
    return start_text(server, now)


def _is_wedged(server: Server) -> bool:
    starting = server.state is ServerState.STARTING
    return starting and server.progress is not None and server.progress.quiet_since is not None


def _trouble(app: GpuboxApp) -> str:
    if app.trouble is None:
        return ""
    wait_s = app.trouble.retry_at - app.now()
    again = f"asking again in {wait_s:.0f} s" if wait_s >= 1 else "reconnecting"
    problem = app.trouble.problem.message
    if app.snapshot is None:
        return f" no keeper, {again}: {problem}"
    return f" keeper lost, data {duration(app.now() - app.snapshot.box.at)} old, {again}: {problem}"
