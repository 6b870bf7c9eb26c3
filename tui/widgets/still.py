"""Textual's Static for text that is shown anew each second: laid out again only where it needs another size."""

from __future__ import annotations

from rich.text import Text
from textual.visual import VisualType
from textual.widgets import Static


class Still(Static):
    """A Static whose `update` does nothing with what it shows already, and leaves the layout alone where it may."""

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show `content`; `layout` allows another size."""
        if _is_same(content, self.content):
            return
        before = self._needed()
        super().update(content, layout=False)
        if layout and (before is None or self._needed() != before):
            self.refresh(layout=True)

    def _needed(self) -> tuple[int, int] | None:
        """Return the width and height that the content asks for, 0 where it is not asked; None before a layout."""
        width = self.content_size.width
        if not width:
            return None
        styles, rules = self.styles, self.styles.get_rules()
        return (
            self.visual.get_optimal_width(rules, self.app.size.width) if styles.is_auto_width else 0,
            self.visual.get_height(rules, width) if styles.is_auto_height else 0,
        )


def _is_same(new: VisualType, old: VisualType) -> bool:
    if isinstance(new, Text) and isinstance(old, Text):
        return new == old and new.style == old.style and new.no_wrap == old.no_wrap and new.justify == old.justify
    return isinstance(new, str) and new == old
