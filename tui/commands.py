"""The palette's commands: what can be done now, to the servers and profiles that there are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

if TYPE_CHECKING:
    from tui.app import GpuboxApp

Command = tuple[str, str, Callable[[], object]]


class GpuboxCommands(Provider):
    """Go to a mode, select a server, stop it, start a profile …"""

    async def startup(self) -> None:
        """Read the profiles once a palette is opened."""
        self._profiles = await cast("GpuboxApp", self.app).profile_rows()

    def _commands(self) -> Iterator[Command]:
        app = cast("GpuboxApp", self.app)
        for number, (mode, (title, _)) in enumerate(app.PANELS.items(), start=1):
            yield f"Go to {title}", f"key {number}", partial(app.switch_mode, mode)
        for server in app.servers:
            name = server.name
            yield f"Select {name}", server.state.value, partial(setattr, app, "selected", name)
            if server.is_live:
                yield f"Use {name}", "copy its curl, base URL and ssh lines", partial(app.action_use_server, name)
            if app.readonly or server.foreign is not None:
                continue
            if server.is_live:
                yield f"Stop {name}", "drain, then stop it", partial(app.action_stop_server, name)
            else:
                yield f"Forget {name}", "drop it from the list; its logs stay", partial(app.action_forget_server, name)
            yield f"Restart {name}", "as it was started", partial(app.action_restart_server, name)
        for profile in () if app.readonly else self._profiles:
            if profile.problem is None:
                yield f"Start {profile.name} …", profile.description, partial(app.action_launch, profile.name)

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
