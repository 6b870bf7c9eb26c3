"""A log on screen: follows its end, scrolls back without limit, filters, searches, jumps, marks and copies lines."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.binding import Binding, BindingType
from textual.scrollbar import ScrollDown, ScrollTo, ScrollUp

from backends.logs.windows import START
from tui.widgets.log_marking import MarkingPane

WHEEL_ROWS = 3


class LogView(MarkingPane):
    """Shows a log, from its end on: `view.open(path)`, `view.open(None)` to show nothing; that is all a tail needs.

    Several paths are merged by the lines' times, with `labels` before them. Nothing is read on the UI loop: a thread
    reads what is looked at (`LogReader`), processes of their own search. `pause(paused=True)` while nobody looks;
    unmounting ends the thread and its children. `Changed` says that `status` or `extent` is new, `Complained` that
    something was asked for that cannot be. Filters and searches stay when another log is opened.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="log.up", tooltip="One line up; the log is not followed then"),
        Binding("down,j", "move(1)", "Down", show=False, id="log.down", tooltip="One line down"),
        Binding("space", "mark", "Mark from here", id="log.mark", tooltip="Mark lines from here on, or no longer"),
        Binding("pageup,b", "page(-1)", "Page up", show=False, id="log.page_up", tooltip="One page up"),
        Binding("pagedown,space", "page(1)", "Page down", show=False, id="log.page_down", tooltip="One page down"),
        Binding("home,g", "to_start", "Start", show=False, id="log.start", tooltip="Go to the first line"),
        Binding(
            "end,G",
            "follow",
            "Follow",
            show=False,
            id="log.follow",
            key_display="G",
            tooltip="Go to the end and follow it",
        ),
        Binding("left,h", "sideways(-1)", "Left", show=False, id="log.left", tooltip="Show what is further left"),
        Binding("right,l", "sideways(1)", "Right", show=False, id="log.right", tooltip="Show what is further right"),
        Binding("w", "wrap", "Wrap", show=False, id="log.wrap", tooltip="Wrap long lines, or cut them"),
        Binding("t", "whole", "Whole", show=False, id="log.whole", tooltip="Lines as the file has them, or short"),
        Binding("y", "copy", "Copy", id="log.copy", tooltip="Choose a line, or mark several; again: copy"),
    ]

    @on(ScrollTo)
    def _on_drag(self, message: ScrollTo) -> None:
        """Go where the scrollbar was dragged to."""
        message.prevent_default().stop()
        if message.y is not None:
            self._go_to_row(round(message.y))

    @on(ScrollUp)
    @on(ScrollDown)
    def _on_page(self, message: ScrollUp | ScrollDown) -> None:
        """Go on where the scrollbar was clicked."""
        message.prevent_default().stop()
        self.action_page(-1 if isinstance(message, ScrollUp) else 1)

    def _go_to_row(self, row: int) -> None:
        window, room = self._window, self.virtual_size.height - self.scrollable_size.height
        if window.first and window.last:
            self._go(self._base + row, 0, may_follow=True)
        elif row >= room > 0:
            self.action_follow()
        elif self._reader:
            self._leave_end()
            self._jump = (self._reader.jump_to(row / max(1, room)), "part")

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll up, row by row also within a long wrapped line."""
        event.prevent_default().stop()
        self.action_move(-WHEEL_ROWS)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll down."""
        event.prevent_default().stop()
        self.action_move(WHEEL_ROWS)

    def action_page(self, pages: int) -> None:
        """Scroll by pages, keeping one row in view."""
        self.action_move(pages * max(1, self.scrollable_size.height - 1))

    def action_to_start(self) -> None:
        """Go to the oldest line."""
        self.stop_looking()
        if self._window.first or not self._reader:
            self._go(self._base, 0)
        else:
            self._leave_end()
            self._wants_start = True
            self._place, self._ask = START, self._reader.show(START, self._around)

    def action_follow(self) -> None:
        """Go to the end and stay there."""
        self.stop_looking()
        self.following, self._wants_start = True, False
        self._settle()

    def action_wrap(self) -> None:
        """Wrap long lines, or cut them at the right edge."""
        self._rows.wraps = not self._rows.wraps
        self._row = 0
        self.scroll_x = 0
        self._rows.clear()
        self._settle()

    def action_whole(self) -> None:
        """Show lines whole as they are in the file, or short: the time, the process, the text."""
        self._rows.whole = not self._rows.whole
        self._rows.widest = 0
        self._row = 0
        self._rows.clear()
        self._settle()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what changes something now."""
        window, is_marking = self._window, self._pointer is not None
        if not window.lines and action in ("move", "page", "to_start", "follow", "sideways", "copy", "wrap", "whole"):
            return False
        if action == "mark":
            return is_marking
        if action == "sideways":
            x = self.scroll_offset.x
            return not self._rows.wraps and (x > 0 if parameters == (-1,) else x < self._rows.widest - self._width)
        if action in ("move", "page") and not is_marking:
            return not self.following if parameters == (1,) else not self._is_at_start
        if action == "to_start":
            return not self._is_at_start and not is_marking
        return not self.following and not is_marking if action == "follow" else True
