"""Where a question or a command is written: Enter sends it, Ctrl+J begins a new line, Tab completes a command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from backends.chat_commands import completed
from tui.keymap import live_keys


class ChatInput(TextArea):
    """A text field that grows with its text, up to what its style allows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="question.send", tooltip="Send what is written"),
        Binding(
            "ctrl+j,shift+enter", "new_line", "New line", show=False, id="question.line", tooltip="Begin a new line"
        ),
        # Textual's text field selects with these: here they show modes, as everywhere.
        Binding("f6", "app.go('runs')", show=False, id="question.runs", tooltip="Runs, as everywhere"),
        Binding("f7", "app.go('profiles')", show=False, id="question.profiles", tooltip="Profiles, as everywhere"),
    ]

    def __init__(self, send: Callable[[str], bool], *, id: str | None = None) -> None:
        """`send` is given the text and returns whether it took it: at once, or what is typed next would go with it."""
        super().__init__(id=id, soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False, compact=True)
        self._send = send
        self._former: Sequence[str] = ()
        self._back = 0
        self._unsent = ""
        self._offered = False

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to send only what is written."""
        return self._has_text if action == "send" else super().check_action(action, parameters)

    @property
    def _has_text(self) -> bool:
        return bool(self.text.strip())

    def on_text_area_changed(self) -> None:
        """Draw the keys anew where others work now."""
        if self._has_text != self._offered:
            self._offered = self._has_text
            self.refresh_bindings()

    def write(self, text: str) -> None:
        """Replace the text, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def action_send(self) -> None:
        """Send what is written."""
        if self._send(self.text):
            self._back = 0
            self.write("")

    def remember(self, former: Sequence[str]) -> None:
        """Take these questions, the newest last, for those that Up brings back."""
        if former != self._former:
            self._former, self._back = former, 0

    def action_new_line(self) -> None:
        """Begin a new line."""
        self.insert("\n")

    def on_key(self, event: events.Key) -> None:
        """Act on keys in the order in which they come: bindings would be overtaken by what is typed right after."""
        row, last = self.cursor_location[0], self.document.line_count - 1
        if event.key in live_keys(self.app, "question.send"):
            self.action_send()
        elif event.key in live_keys(self.app, "question.line"):
            self.action_new_line()
        elif event.key == "tab" and self.text.startswith("/"):
            self.run_worker(self._complete(), group="complete", exclusive=True)
        elif event.key == "up" and row == 0 and self._back < len(self._former):
            self._recall(1)
        elif event.key == "down" and row == last and self._back > 0:
            self._recall(-1)
        else:
            return
        event.prevent_default().stop()

    async def _complete(self) -> None:
        typed = self.text
        whole = await asyncio.to_thread(completed, typed)
        if self.text == typed and whole != typed:
            self.write(whole)

    def _recall(self, step: int) -> None:
        if self._back == 0:
            self._unsent = self.text
        self._back += step
        self.write(self._former[-self._back] if self._back else self._unsent)
