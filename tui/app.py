"""The control center: wiring of modes, keys, the palette and the keeper; what is shown lives in `screens/`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual import on
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.screen import Screen

from backends.client import KeeperLink
from backends.readonly import ReadOnlyKeeper
from backends.snapshots import Event
from tui.actions import ServerActions
from tui.bridge import follow
from tui.commands import GpuboxCommands
from tui.format import plural
from tui.launching import LaunchIntent
from tui.messages import Happened, KeeperLost, KeeperTrouble, SnapshotChanged
from tui.screens.help import HelpScreen, keys_of
from tui.themes import DEFAULT_VARIABLES, NIGHT, THEMES

if TYPE_CHECKING:
    from profiles.store import Store


def _screen(module: str, name: str) -> Screen[Any]:
    screen: Screen[Any] = getattr(import_module(f"tui.screens.{module}"), name)()
    return screen


PANELS: dict[str, tuple[str, Callable[[], Screen[Any]]]] = {
    "box": ("Box", partial(_screen, "box", "BoxScreen")),
    "servers": ("Servers", partial(_screen, "servers", "ServersScreen")),
    "logs": ("Logs", partial(_screen, "logs", "LogsScreen")),
    "chat": ("Chat", partial(_screen, "chat", "ChatScreen")),
    "metrics": ("Metrics", partial(_screen, "metrics", "MetricsScreen")),
    "runs": ("Runs", partial(_screen, "runs", "RunsScreen")),
    "profiles": ("Profiles", partial(_screen, "profiles", "ProfilesScreen")),
}
"""The modes in the order of their keys 1–7; a screen's module is imported when its mode is first shown."""

MODES_TOOLTIP = ", ".join(title for title, _ in PANELS.values()) + " (F1–F7 while typing)"
SELECT_TOOLTIP = "Select the previous or the next server"
QUIET = frozenset({"started"})
"""Events that the servers screen shows anyway."""

SEVERITY: dict[str, Literal["information", "warning", "error"]] = {
    "failed": "error",
    "lost": "error",
    "unresponsive": "warning",
    "backoff": "warning",
    "memory": "warning",
    "orphan": "warning",
}


class GpuboxApp(ServerActions):
    """The control center of one box."""

    TITLE = "gpubox"
    PANELS = PANELS
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {name: made for name, (_, made) in PANELS.items()}
    DEFAULT_MODE = "box"
    CSS_PATH = "styles/app.tcss"
    COMMANDS = ServerActions.COMMANDS | {GpuboxCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"go('{name}')", title, show=False, id=f"mode.{name}", tooltip=MODES_TOOLTIP)
            for number, (name, (title, _)) in enumerate(PANELS.items(), start=1)
        ),
        *(Binding(f"f{number}", f"go('{name}')", show=False) for number, name in enumerate(PANELS, start=1)),
        Binding("left_square_bracket", "select(-1)", "Back", show=False, id="server.previous", tooltip=SELECT_TOOLTIP),
        Binding("right_square_bracket", "select(1)", "Next", show=False, id="server.next", tooltip=SELECT_TOOLTIP),
        Binding("question_mark", "keys", "Help", id="app.keys", tooltip="The keys that work here"),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave; servers keep running"),
    ]

    trouble: reactive[KeeperTrouble | None] = reactive(None)

    def __init__(
        self,
        link: KeeperLink,
        *,
        store: Store | None = None,
        launch: LaunchIntent | None = None,
        simulated: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self.link = link
        self.readonly = isinstance(link, ReadOnlyKeeper)
        self.store = store
        self.launch = launch
        self.simulated = simulated
        self.now = clock
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = NIGHT.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Lend a theme of Textual's what our styles need."""
        return DEFAULT_VARIABLES

    def on_mount(self) -> None:
        """Start listening to the keeper; a launch asked for on the command line shows the servers."""
        self.run_worker(follow(self.link, self.post_message, self.now), name="keeper", exclusive=True)
        if self.launch is not None:
            self.switch_mode("servers")

    @on(SnapshotChanged)
    def _take(self, message: SnapshotChanged) -> None:
        self.trouble = None
        self.snapshot = message.snapshot
        names = [server.name for server in message.snapshot.servers]
        if self.selected not in names:
            self.selected = names[0] if names else None
        self.meet()
        if self.launch is not None:
            intent, self.launch = self.launch, None
            self.begin(intent)

    @on(KeeperLost)
    def _lost(self, message: KeeperLost) -> None:
        self.trouble = message.trouble

    @on(Happened)
    def _tell(self, message: Happened) -> None:
        event: Event = message.event
        if event.kind not in QUIET:
            severity = SEVERITY.get(event.kind, "information")
            self.notify(event.text, title=event.server or "box", severity=severity, markup=False)

    def action_go(self, mode: str) -> None:
        """Show a mode; a sheet that is open is left first."""
        if not self.screen.is_modal:
            self.switch_mode(mode)

    def action_select(self, step: int) -> None:
        """Select the next or previous server."""
        names = [server.name for server in self.servers]
        if names:
            at = names.index(self.selected) if self.selected in names else -step
            self.selected = names[(at + step) % len(names)]

    def action_keys(self) -> None:
        """Show the keys that work here."""
        title = self.PANELS[self.current_mode][0]
        self.push_screen(HelpScreen(keys_of(self.screen, title)))

    async def action_quit(self) -> None:
        """Leave, and say what goes on without us."""
        self.exit(message=self.farewell())

    def farewell(self) -> str | None:
        """Say which servers keep running after the screen is gone."""
        live = [server.name for server in self.servers if server.is_live]
        if self.simulated or not live:
            return None
        return f"{plural(len(live), 'server')} keep{'s' if len(live) == 1 else ''} running · gpubox status"
