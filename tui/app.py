"""The control center: wiring of modes, keys, the palette and the keeper; what is shown lives in `screens/`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual import on
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.filter import LineFilter
from textual.reactive import reactive
from textual.screen import Screen

from backends.link import KeeperLink
from backends.readonly import ReadOnlyKeeper
from backends.settings import Settings, write_theme
from backends.snapshots import Event
from tui.actions import ServerActions
from tui.ascii import AsciiFilter, wants_ascii
from tui.bridge import follow
from tui.commands import GpuboxCommands, ThemeCommands
from tui.format import plural
from tui.launching import LaunchIntent
from tui.messages import Happened, KeeperLost, KeeperTrouble, SnapshotChanged
from tui.order import in_order
from tui.screens.confirm import ConfirmScreen
from tui.screens.help import HelpScreen, keys_of
from tui.sleeping import switch_of
from tui.themes import DEFAULT_VARIABLES, NIGHT, THEMES

if TYPE_CHECKING:
    from profiles.errors import ProfileProblem
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
NO_SETTINGS = Settings()
STEPS = frozenset({"asleep", "awake", "ready", "stopped"})
QUIET = frozenset({"started"})
"""Events that the servers screen shows anyway."""

SEVERITY: dict[str, Literal["information", "warning", "error"]] = {
    "failed": "error",
    "lost": "error",
    "unresponsive": "warning",
    "backoff": "warning",
    "memory": "warning",
    "orphan": "warning",
    "xid": "warning",
    "switch-failed": "error",
    "sleep-failed": "warning",
    "evicted": "warning",
    "restored": "warning",
}
RINGS = frozenset({"ready", "failed", "lost"})
"""Events that ring the bell where the settings want it."""

HEARD_MOST = 500
PROBLEMS_SHOWN = 4


class GpuboxApp(ServerActions):
    """The control center of one box."""

    TITLE = "gpubox"
    PANELS = PANELS
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {name: made for name, (_, made) in PANELS.items()}
    DEFAULT_MODE = "box"
    CSS_PATH = Path(__file__).with_name("styles") / "app.tcss"
    COMMANDS = ServerActions.COMMANDS | {GpuboxCommands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"go('{name}')", title, show=False, id=f"mode.{name}", tooltip=MODES_TOOLTIP)
            for number, (name, (title, _)) in enumerate(PANELS.items(), start=1)
        ),
        *(
            Binding(f"f{number}", f"go('{name}')", show=False, id=f"fkey.{name}")
            for number, name in enumerate(PANELS, start=1)
        ),
        Binding("left_square_bracket", "select(-1)", "Back", show=False, id="server.previous", tooltip=SELECT_TOOLTIP),
        Binding("right_square_bracket", "select(1)", "Next", show=False, id="server.next", tooltip=SELECT_TOOLTIP),
        Binding("e", "events", "Events", show=False, id="app.events", tooltip="What has happened to the servers"),
        Binding("question_mark", "keys", "Help", id="app.keys", tooltip="The keys that work here"),
        Binding(
            "ctrl+p",
            "command_palette",
            "Palette",
            show=False,
            priority=True,
            id="app.palette",
            tooltip="Find anything that can be done, by its name",
        ),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Leave; servers keep running"),
    ]

    trouble: reactive[KeeperTrouble | None] = reactive(None, repaint=False)
    heard: reactive[tuple[Event, ...]] = reactive((), repaint=False)

    def __init__(
        self,
        link: KeeperLink,
        *,
        store: Store | None = None,
        launch: LaunchIntent | None = None,
        simulated: bool = False,
        clock: Callable[[], float] = time.time,
        settings: Settings = NO_SETTINGS,
    ) -> None:
        super().__init__()
        self.link = link
        self.readonly = isinstance(link, ReadOnlyKeeper)
        self.store = store
        self.launch = launch
        self.simulated = simulated
        self.now = clock
        self.settings = settings
        self.keymap: Mapping[str, str] = {}
        self._ascii: list[LineFilter] | None = None
        for theme in THEMES:
            self.register_theme(theme)
        wanted = settings.screen.theme or ""
        self.theme = wanted if wanted in self.available_themes else NIGHT.name

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Lend a theme of Textual's what our styles need."""
        return DEFAULT_VARIABLES

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Draw in ASCII where the terminal shows nothing else, or the user wants it."""
        if self._ascii is None:
            has_terminal = not (self.is_headless or self.is_web)
            wanted = wants_ascii(self.settings.screen.ascii, os.environ, has_terminal=has_terminal)
            self._ascii = [AsciiFilter()] if wanted else []
        return [*super().get_line_filters(), *self._ascii]

    def on_mount(self) -> None:
        """Start listening to the keeper; a launch asked for on the command line shows the servers."""
        self.run_worker(follow(self.link, self.post_message, self.now), name="keeper", exclusive=True)
        if self.launch is not None:
            self.switch_mode("servers")
        self._complain_of([*self.settings.problems, *self._theme_problems(), *self._take_keys()])

    def _theme_problems(self) -> list[ProfileProblem]:
        wanted = self.settings.screen.theme
        if wanted is None or wanted in self.available_themes:
            return []
        from profiles.errors import did_you_mean

        hint = did_you_mean(wanted, self.available_themes, "the palette lists them: Theme")
        return [self.settings.problem(("screen", "theme"), f"there is no theme {wanted!r}", hint)]

    def _take_keys(self) -> list[ProfileProblem]:
        """Lay the user's keys over ours, and return what of them cannot be had; without any nothing is imported."""
        if not self.settings.keys:
            return []
        from tui.keymap import remapped

        found = remapped(type(self), self.settings.keys)
        self.keymap = found.keymap
        self.set_keymap(found.keymap)
        if (palette := found.keymap.get("app.palette")) is not None:
            # Textual's footer looks the palette up by its key.
            self.COMMAND_PALETTE_BINDING = palette.partition(",")[0]  # type: ignore[misc]
        return [self.settings.problem(("keys", name), wrong, hint) for name, wrong, hint in found.refused]

    def _complain_of(self, problems: list[ProfileProblem]) -> None:
        if problems:
            lines = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
            if len(problems) > PROBLEMS_SHOWN:
                lines.append(f"and {len(problems) - PROBLEMS_SHOWN} more")
            title = f"{plural(len(problems), 'setting')} not used"
            self.notify("\n".join(lines), title=title, severity="warning", timeout=20, markup=False)

    @on(SnapshotChanged)
    def _take(self, message: SnapshotChanged) -> None:
        self.trouble = None
        self.snapshot = replace(message.snapshot, servers=in_order(message.snapshot.servers))
        if self.named() is None:
            self.selected = next((server.name for server in self.servers), None)
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
        self.heard = (*self.heard[-HEARD_MOST + 1 :], event)
        if self.settings.screen.bell and event.kind in RINGS:
            self.bell()
        # A switch says in one line what it did; its steps need no toasts of their own.
        is_step = event.kind in STEPS and self.snapshot is not None and switch_of(self.snapshot, event.server)
        is_told = event.kind in getattr(self.screen, "TELLS", ())
        if event.kind not in QUIET and not is_step and not is_told:
            severity = SEVERITY.get(event.kind, "information")
            self.notify(event.text, title=event.server or "box", severity=severity, markup=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer neither the mode that is shown already, nor to select where there is no choice."""
        if action == "go":
            return parameters != (self.current_mode,)
        if action == "select":
            return len(self.servers) > 1
        return super().check_action(action, parameters)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Keep of Textual's commands what is not a key of ours anyway; a picture is a file, so not when read-only."""
        ours = ("Theme", "Keys", "Quit", *(("Screenshot",) if self.readonly else ()))
        yield SystemCommand("Theme", "Choose the colours; config.toml remembers them", self.action_change_theme)
        yield from (command for command in super().get_system_commands(screen) if command.title not in ours)

    def search_themes(self) -> None:
        """Let the user choose a theme."""
        self.push_screen(CommandPalette(providers=[ThemeCommands], placeholder="Search for themes…"))

    def choose_theme(self, name: str) -> None:
        """Show a theme from now on, and remember it, unless nothing may be written."""
        self.theme = name
        if self.settings.path is not None and not self.readonly:
            self.request(asyncio.to_thread(write_theme, self.settings.path, name))

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
        self.push_screen(HelpScreen(keys_of(self.screen, self.PANELS[self.current_mode][0])))

    def action_events(self) -> None:
        """Show what has happened."""
        from tui.screens.events import EventsScreen

        self.push_screen(EventsScreen())

    async def action_quit(self) -> None:
        """Leave, and say what goes on without us; asks where a profile was edited that no file has."""
        if (name := self._unsaved()) is None:
            self.leave()
            return

        def leave(sure: bool | None) -> None:
            if sure:
                self.leave()

        text = f"{name}.toml has changes that no file has yet: they would be lost."
        if not isinstance(self.screen, ConfirmScreen):
            self.push_screen(ConfirmScreen("Leave gpubox?", text, "Leave"), leave)

    def leave(self) -> None:
        """End the app, and say what goes on without us."""
        self.exit(message=self.farewell())

    def _unsaved(self) -> str | None:
        """Return the profile that is being edited, where that is not saved; its screen need not be on top."""
        screens: Iterator[Any] = (screen for stack in self._screen_stacks.values() for screen in stack)
        return next((screen.draft.name for screen in screens if getattr(screen, "is_unsaved", False)), None)

    async def _close_all(self) -> None:
        """End what still works before its screens lose their parts."""
        self.workers.cancel_all()
        await super()._close_all()

    def farewell(self) -> str | None:
        """Say which servers keep running after the screen is gone."""
        live = [server.name for server in self.servers if server.is_live]
        if self.simulated or not live:
            return None
        return f"{plural(len(live), 'server')} keep{'s' if len(live) == 1 else ''} running · gpubox status"
