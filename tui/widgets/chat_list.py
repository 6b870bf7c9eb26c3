"""A server's conversations, one below the other; its keys rename and delete the one under the cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from backends.chat_conversations import Conversation
from tui.format import fit, plural
from tui.themes import palette


class ConversationList(OptionList):
    """Enter shows the conversation under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Show", id="chats.show", tooltip="Show this conversation"),
        Binding("j", "cursor_down", "Down", show=False, id="chats.down", tooltip="Go down"),
        Binding("k", "cursor_up", "Up", show=False, id="chats.up", tooltip="Go up"),
        Binding("r", "ask_for('rename')", "Rename", id="chats.rename", tooltip="Give this conversation another name"),
        Binding("d,delete", "ask_for('delete')", "Delete", id="chats.delete", tooltip="Forget this conversation"),
    ]

    class Wanted(Message):
        """Something shall be done with a conversation: `what` is 'show', 'rename' or 'delete'."""

        def __init__(self, what: str, conversation: Conversation) -> None:
            super().__init__()
            self.what = what
            self.conversation = conversation

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, compact=True)
        self._conversations: tuple[Conversation, ...] = ()
        self._told: list[str] = []

    def show(self, conversations: Sequence[Conversation], current: Conversation | None) -> None:
        """Show these, the current one marked; the cursor stays on its conversation."""
        told = [self._line(one, current) for one in conversations]
        under = self._under_cursor
        if told == self._told and tuple(conversations) == self._conversations and (self.has_focus or under is current):
            return
        self._conversations, self._told = tuple(conversations), told
        self.clear_options()
        self.add_options([Option(Text(line, no_wrap=True)) for line in told])
        wanted = under if self.has_focus and under in self._conversations else current
        if wanted in self._conversations:
            self.highlighted = self._conversations.index(wanted)

    def _line(self, one: Conversation, current: Conversation | None) -> str:
        sign = "●" if one is current else "…" if one.is_answering else " "
        return f"{sign} {fit(one.name, 28)} · {plural(len(one.exchanges), 'question')}"

    @property
    def _under_cursor(self) -> Conversation | None:
        at = self.highlighted
        return self._conversations[at] if at is not None and at < len(self._conversations) else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done with what is under the cursor."""
        one = self._under_cursor
        if action in ("cursor_down", "cursor_up"):
            return len(self._conversations) > 1
        if action == "ask_for":
            if parameters == ("delete",):
                return one is not None and (len(self._conversations) > 1 or bool(one.exchanges))
            return one is not None and (bool(one.exchanges) or bool(one.title))
        return True

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Ask that it is shown."""
        event.stop()
        self.post_message(self.Wanted("show", self._conversations[event.option_index]))

    def action_ask_for(self, what: str) -> None:
        """Ask that something is done with the conversation under the cursor."""
        if (one := self._under_cursor) is not None:
            self.post_message(self.Wanted(what, one))

    def on_mount(self) -> None:
        """Draw the current one's sign in the theme's colours."""
        self.styles.border_title_color = palette(self.app).dim
