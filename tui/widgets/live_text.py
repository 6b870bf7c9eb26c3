"""A Static that follows live state: what is the same as before costs nothing."""

from __future__ import annotations

from rich.text import Text
from textual.widget import Widget
from textual.widgets import Static


class LiveText(Static):
    """Text that is drawn anew only when it differs, and laid out anew only when its lines may have become others."""

    def __init__(self, *, id: str | None = None, wraps: bool = False) -> None:
        super().__init__(id=id, markup=False)
        self._wraps = wraps
        self._last: tuple[Text, object] | None = None

    @property
    def text(self) -> Text:
        """What is shown."""
        return self._last[0] if self._last else Text()

    def show(self, text: Text) -> None:
        """Show `text`, which must not be changed afterwards."""
        last, self._last = self._last, (text, text.style)
        if self._last != last:
            same_lines = last is not None and last[0].plain.count("\n") == text.plain.count("\n")
            self.update(text, layout=self._wraps or not same_lines)


def entitle(panel: Widget, title: str) -> None:
    """Give a panel its title: Textual draws all of the panel anew for one, also for the one that it has."""
    if panel.border_title != title:
        panel.border_title = title


def can_scroll(panel: Widget, lines: object) -> bool:
    """Whether a panel hides something below (`lines` > 0) or above what it shows."""
    at = min(panel.scroll_y, panel.max_scroll_y)
    return at < panel.max_scroll_y if isinstance(lines, int) and lines > 0 else at > 0


def keep_focus(focused: Widget | None, table: Widget, *, shown: bool) -> Widget | None:
    """Return what is to have the focus of a screen whose `table` comes and goes: keys of a hidden one do nothing."""
    if shown:
        return focused or table
    return None if focused is table else focused
