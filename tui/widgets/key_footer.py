"""The keys below each screen: made anew only when others are offered."""

from __future__ import annotations

from typing import Any

from textual.screen import Screen
from textual.widgets import Footer


class KeyFooter(Footer):
    """Textual's footer, whose keys are widgets: making and styling them takes longer than a frame.

    It looks once after all that happens in a frame, and makes them anew only where what they say has changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self._offered: object = None
        self._is_due = False

    def bindings_changed(self, screen: Screen[Any]) -> None:
        """Look for other keys soon, once."""
        self._bindings_ready = True
        if screen.app.app_focus and self.is_attached and screen is self.screen and not self._is_due:
            self._is_due = True
            self.call_after_refresh(self._catch_up)

    async def _catch_up(self) -> None:
        self._is_due = False
        if not self.is_attached:
            return
        offered = [
            (self.app.get_key_display(binding), binding.description, binding.action, is_enabled, tooltip)
            for _, binding, is_enabled, tooltip in self.screen.active_bindings.values()
            if binding.show or binding.key == self.app.COMMAND_PALETTE_BINDING
        ]
        if offered != self._offered:
            self._offered = offered
            await self.recompose()
