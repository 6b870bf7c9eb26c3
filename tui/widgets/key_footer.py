"""The keys below each screen and each sheet: made anew only when others are offered, and never cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

KEY_MARGIN, TEXT_MARGIN, PALETTE_MARGIN = 2, 1, 2
LAST_TO_GO = "app.keys"
"""The action's binding that leads to all others: what does not fit is found there."""


class KeyFooter(Footer):
    """Textual's footer, whose keys are widgets: making and styling them takes longer than a frame.

    It looks once after all that happens in a frame, and makes them anew only where what they say has changed. Where
    there is no room for all, the last hints are left out, whole, and `?`, which lists every key, stays.
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

    def on_resize(self) -> None:
        """Look how many there is room for now."""
        if self._bindings_ready:
            self.bindings_changed(self.screen)

    def compose(self) -> ComposeResult:
        """Make the keys that fit."""
        made: list[Widget] = list(super().compose())
        keys = [one for one in made if isinstance(one, FooterKey)]
        kept = fitting(keys, self.app.size.width, self._help_action())
        yield from (one for one in made if not isinstance(one, FooterKey) or one in kept)

    def _help_action(self) -> str:
        """Return the action of the key that lists all keys; a sheet has none."""
        active = self.screen.active_bindings.values()
        return next((one.binding.action for one in active if one.binding.id == LAST_TO_GO), "")

    async def _catch_up(self) -> None:
        self._is_due = False
        if not self.is_attached:
            return
        offered = (
            self.app.size.width,
            [
                (self.app.get_key_display(binding), binding.description, binding.action, is_enabled, tooltip)
                for _, binding, is_enabled, tooltip in self.screen.active_bindings.values()
                if binding.show or binding.key == self.app.COMMAND_PALETTE_BINDING
            ],
        )
        if offered != self._offered:
            self._offered = offered
            await self.recompose()


def fitting(keys: Sequence[FooterKey], width: int, keeps: str) -> list[FooterKey]:
    """Return the keys that have room in `width` cells; of the others the last go first, the one that `keeps` never."""
    kept = list(keys)
    while sum(map(_cells, kept)) > width:
        last = next((one for one in reversed(kept) if not _is_palette(one) and one.action != keeps), None)
        if last is None:
            break
        kept.remove(last)
    return kept


def _is_palette(key: FooterKey) -> bool:
    return key.has_class("-command-palette")


def _cells(key: FooterKey) -> int:
    cells = cell_len(key.key_display) + KEY_MARGIN
    if key.description:
        cells += cell_len(key.description) + TEXT_MARGIN
    return cells + (PALETTE_MARGIN if _is_palette(key) else 0)
