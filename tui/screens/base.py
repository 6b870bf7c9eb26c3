"""What all screens share: the newest snapshot and the selected server, shown only while a screen is on top."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.screen import Screen

from backends.snapshots import Server, Snapshot
from tui.widgets.key_footer import KeyFooter
from tui.widgets.status_bar import StatusBar

if TYPE_CHECKING:
    from tui.app import GpuboxApp

WIDE_CELLS = 140
ROOMY_LINES = 32
DETAILS_TOOLTIP = "Scroll the details"


class GpuboxScreen(Screen[None]):
    """A mode of the control center; `show` is called with the newest state whenever it matters, never while hidden.

    `CHANGES` are the actions that start, stop, signal or write: a read-only screen does not offer them.
    """

    CHANGES: ClassVar[frozenset[str]] = frozenset()
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("i", "explain", "Explain", show=False, id="screen.explain", tooltip="What the figures here mean"),
    ]

    @property
    def gpubox(self) -> GpuboxApp:
        """The app, with its own type."""
        return cast("GpuboxApp", self.app)

    @property
    def server(self) -> Server | None:
        """The selected server, if it is still there."""
        snapshot, name = self.gpubox.snapshot, self.gpubox.selected
        return next((s for s in snapshot.servers if s.name == name), None) if snapshot else None

    def key_of(self, name: str) -> str:
        """Return the key of the binding with this id, as it is mapped now, for a text that names it."""
        # Not above: the first picture needs no catalogue of keys.
        from tui.keymap import key_of

        return key_of(self.app, name)

    def on_mount(self) -> None:
        """Add what every screen has (the bar on top, the keys below), and follow the app's state."""
        self.mount(StatusBar(), KeyFooter())
        self.watch(self.app, "snapshot", self._changed, init=False)
        self.watch(self.app, "selected", self._changed, init=False)

    def on_screen_resume(self) -> None:
        """Catch up with what happened while another screen was on top."""
        self._changed()

    def on_resize(self) -> None:
        """Say in classes how much room there is, and lay out anew what is drawn for a width."""
        self.set_class(self.app.size.width >= WIDE_CELLS, "-wide")
        self.set_class(self.app.size.height >= ROOMY_LINES, "-roomy")
        self.call_after_refresh(self._changed)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what changes nothing, and all else unless the screen is read-only."""
        if action == "explain":
            return bool(self.explained())
        return not (self.gpubox.readonly and action in self.CHANGES)

    def explained(self) -> tuple[str, ...]:
        """Return the keys in `tui.explain.EXPLANATIONS` of the figures on screen, the one under the cursor first."""
        return ()

    def action_explain(self) -> None:
        """Say what the figures on screen mean, and what drives them."""
        if figures := self.explained():
            from tui.screens.explain import ExplainScreen

            self.app.push_screen(ExplainScreen(figures))

    def _changed(self) -> None:
        if self.is_current and self.gpubox.snapshot is not None:
            self.show(self.gpubox.snapshot, self.server)

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the newest state; called on the UI loop, must do no I/O."""
        raise TypeError(f"{type(self).__name__} must say what it shows")
