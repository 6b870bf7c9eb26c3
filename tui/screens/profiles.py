"""The profiles: what could be served, and what is wrong with those that could not."""

from __future__ import annotations

from textual import work
from textual.app import ComposeResult

from backends.snapshots import Server, Snapshot
from tui.screens.base import GpuboxScreen
from tui.widgets.profile_table import ProfileRow, ProfileTable


class ProfilesScreen(GpuboxScreen):
    """All profiles; Enter opens the launch sheet."""

    AUTO_FOCUS = "ProfileTable"
    CHANGES = frozenset({"launch", "start"})

    def __init__(self) -> None:
        super().__init__()
        self._profiles: tuple[ProfileRow, ...] = ()

    def compose(self) -> ComposeResult:
        """Make the table."""
        yield ProfileTable()

    def on_screen_resume(self) -> None:
        """Read the profiles again: somebody may have edited one."""
        self._read()

    @work(group="profiles", exclusive=True)
    async def _read(self) -> None:
        self._profiles = await self.gpubox.profile_rows()
        self._changed()

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the profiles."""
        self.query_one(ProfileTable).follow(self._profiles, self.app.size.width)

    def action_launch(self) -> None:
        """Open the launch sheet for the profile under the cursor."""
        if (name := self.query_one(ProfileTable).cursor_key) is not None:
            self.gpubox.action_launch(name)
