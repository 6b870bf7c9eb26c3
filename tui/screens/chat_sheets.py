"""The chat's sheets: one line that is asked for, and one of several servers to choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static

from backends.chat_conversations import Conversation
from tui.widgets.chat_list import ConversationList

SHEET_CSS = """
    {0} {{
        align: center middle;

        #sheet {{
            width: 64;
            max-width: 96%;
            height: auto;
            max-height: 90%;
            padding: 0 1;
            border: round $primary;
            border-title-color: $primary;
            border-title-style: bold;
            border-subtitle-color: $dim;
            background: $surface;
        }}

        OptionList {{
            height: auto;
            max-height: 16;
            border: none;
            background: $surface;
        }}
    }}
"""


class LineScreen(ModalScreen[str | None]):
    """Ask for one line; Enter takes it, Esc leaves it as it was."""

    DEFAULT_CSS = SHEET_CSS.format("LineScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Leave it", id="line.leave", tooltip="Change nothing"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title, sheet.border_subtitle = self._title, "Enter takes it · Esc leaves it"
            yield Input(self._text, id="line", compact=True)

    @on(Input.Submitted)
    def _taken(self, message: Input.Submitted) -> None:
        self.dismiss(message.value.strip())


class ServerScreen(ModalScreen[str | None]):
    """Choose one of several servers; each stands with what is said of it."""

    DEFAULT_CSS = SHEET_CSS.format("ServerScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "Leave it", id="second.leave", tooltip="Choose none"),
        Binding("j", "app.simulate_key('down')", show=False, id="second.down", tooltip="Move in the list"),
        Binding("k", "app.simulate_key('up')", show=False, id="second.up", tooltip="Move in the list"),
    ]

    def __init__(self, title: str, servers: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._title = title
        self._servers = list(servers)

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title, sheet.border_subtitle = self._title, "Enter takes it · Esc leaves it"
            yield OptionList(*(f"{name}  {about}" for name, about in self._servers), markup=False, compact=True)

    @on(OptionList.OptionSelected)
    def _taken(self, message: OptionList.OptionSelected) -> None:
        self.dismiss(self._servers[message.option_index][0])


class ConversationsScreen(ModalScreen[tuple[str, Conversation] | None]):
    """Choose one of the server's conversations, or what shall be done with it: 'show', 'rename', 'delete'."""

    DEFAULT_CSS = SHEET_CSS.format("ConversationsScreen")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,l", "dismiss", "Leave it", id="chats.leave", tooltip="Stay where you were"),
    ]

    def __init__(self, conversations: Sequence[Conversation], current: Conversation | None) -> None:
        super().__init__()
        self._conversations = tuple(conversations)
        self._current = current

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title = "Conversations"
            yield ConversationList()
            yield Static("Enter shows · r renames · d deletes · Esc closes", classes="keys")

    def on_mount(self) -> None:
        """Show what there is."""
        self.query_one(ConversationList).show(self._conversations, self._current)

    @on(ConversationList.Wanted)
    def _wanted(self, message: ConversationList.Wanted) -> None:
        message.stop()
        self.dismiss((message.what, message.conversation))
