"""The palette's commands: what can be done now, to the servers and profiles that there are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.screen import Screen

from backends.snapshots import ServerState
from tui.actions import ENDING
from tui.bindings import bindings_here, run_binding, shown_as

if TYPE_CHECKING:
    from tui.app import GpuboxApp

Command = tuple[str, str, Callable[[], object]]
SAID_OTHERWISE = ("mode.", "fkey.", "app.palette")
"""Bindings that the palette has under names of its own, or that open it."""


class GpuboxCommands(Provider):
    """Go to a mode, select a server, stop it, start a profile …"""

    async def startup(self) -> None:
        """Read the profiles once a palette is opened."""
        self._profiles = await cast("GpuboxApp", self.app).profile_rows()

    def _commands(self) -> Iterator[Command]:
        # Not above: the first picture needs no catalogue of keys.
        from tui.keymap import key_of

        app = cast("GpuboxApp", self.app)
        yield from actions_of(app, self.screen)
        if self.screen.is_modal:
            return
        for mode, (title, _) in app.PANELS.items():
            yield f"Go to {title}", f"key {key_of(app, f'mode.{mode}')}", partial(app.action_go, mode)
        for server in app.servers:
            name = server.name
            yield f"Select {name}", server.state.value, partial(setattr, app, "selected", name)
            if server.is_live:
                yield f"Use {name}", "copy its curl, ssh, base URL or launch line", partial(app.action_use_server, name)
            if app.readonly or server.foreign is not None:
                continue
            if server.state is ServerState.SLEEPING or not server.is_live:
                about = "have it serve; what is in its way gives way"
                yield f"Switch to {name}", about, partial(app.action_switch_to, name)
            if server.can_sleep and server.state is ServerState.READY:
                yield f"Put {name} to sleep", "its GPUs' memory comes back", partial(app.action_sleep_server, name)
            if server.is_live:
                about = "kill it" if server.state in ENDING else "drain, then stop it"
                yield f"Stop {name}", about, partial(app.action_stop_server, name)
            else:
                yield f"Forget {name}", "drop it from the list; its logs stay", partial(app.action_forget_server, name)
            if server.state not in ENDING:
                yield f"Restart {name}", "as it was started", partial(app.action_restart_server, name)
        for profile in () if app.readonly else self._profiles:
            if profile.problem is None:
                yield f"Start {profile.name} …", profile.description, partial(app.action_launch, profile.name)
                if app.named(profile.name) is None:
                    to = partial(app.switch_to, profile.name, is_profile=True)
                    yield f"Switch to {profile.name}", "start it; what is in its way gives way", to

    async def discover(self) -> Hits:
        """Offer everything before anything is typed."""
        for title, about, run in self._commands():
            yield DiscoveryHit(title, run, help=about or None)

    async def search(self, query: str) -> Hits:
        """Offer what matches."""
        matcher = self.matcher(query)
        for title, about, run in self._commands():
            if (score := matcher.match(title)) > 0:
                yield Hit(score, matcher.highlight(title), run, help=about or None)


class ThemeCommands(Provider):
    """Choose a theme: the product's own first, then Textual's."""

    def _commands(self) -> Iterator[Command]:
        app = cast("GpuboxApp", self.app)
        themes = sorted(app.available_themes.values(), key=attrgetter("name"))
        for theme in sorted(themes, key=lambda theme: not theme.name.startswith("gpubox-")):
            about = "the one that is shown" if theme.name == app.theme else "dark" if theme.dark else "light"
            yield theme.name, about, partial(app.choose_theme, theme.name)

    async def discover(self) -> Hits:
        """Offer all."""
        for title, about, run in self._commands():
            yield DiscoveryHit(title, run, help=about)

    async def search(self, query: str) -> Hits:
        """Offer what matches."""
        matcher = self.matcher(query)
        for title, about, run in self._commands():
            if (score := matcher.match(title)) > 0:
                yield Hit(score, matcher.highlight(title), run, help=about)


def actions_of(app: GpuboxApp, screen: Screen[object]) -> Iterator[Command]:
    """Go through what the keys of a screen do, as far as that applies now, whatever part of it has the focus."""
    title = screen.__class__.__name__.removesuffix("Screen")
    for node, binding, is_offered in bindings_here(app, screen):
        if is_offered and binding.description and not (binding.id or "").startswith(SAID_OTHERWISE):
            where = "" if node is app else f"{title}: "
            about = f"{binding.tooltip or binding.description} · key {app.get_key_display(shown_as(app, binding))}"
            yield f"{where}{binding.description}", about, partial(run_binding, app, screen, node, binding)
