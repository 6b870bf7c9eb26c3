"""The chat's sheets: one line that is asked for, and the conversations where there is no room at the side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from backends.chat_conversations import Conversation
from tui.screens.sheet import SheetScreen
from tui.widgets.chat_list import ConversationList
from tui.widgets.key_footer import KeyFooter


class LineScreen(SheetScreen[str | None]):
    """Ask for one line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "take", "Take it", key_display="enter", id="line.take", tooltip="Take what is written"),
        Binding("escape", "dismiss", "Leave it", id="line.leave", tooltip="Change nothing"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with self.frame(self._title):
            yield Input(self._text, id="line", compact=True)
        yield KeyFooter()

    @on(Input.Submitted)
    def action_take(self) -> None:
        """End with the line."""
        self.dismiss(self.query_one(Input).value.strip())


class ConversationsScreen(SheetScreen[tuple[str, Conversation] | None]):
    """Choose one of the server's conversations, or what shall be done with it: 'show', 'rename', 'delete'."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,l", "dismiss", "Leave it", id="chats.leave", tooltip="Stay where you were"),
    ]

    def __init__(self, conversations: Sequence[Conversation], current: Conversation | None) -> None:
        super().__init__()
        self._conversations = tuple(conversations)
        self._current = current

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with self.frame("Conversations"):
            yield ConversationList()
        yield KeyFooter()

    def on_mount(self) -> None:
        """Show what there is."""
        self.query_one(ConversationList).show(self._conversations, self._current)

    @on(ConversationList.Wanted)
    def _wanted(self, message: ConversationList.Wanted) -> None:
        message.stop()
        self.dismiss((message.what, message.conversation))
