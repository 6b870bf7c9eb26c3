"""One question before something is lost."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Label

from tui.widgets.key_footer import KeyFooter


class ConfirmScreen(ModalScreen[bool]):
    """Ask `question`; `y` or the first button says yes, everything else says no."""

    DEFAULT_CSS = """
    ConfirmScreen {
        align: center middle;

        #question {
            width: auto;
            max-width: 70;
            height: auto;
            padding: 1 3;
            border: round $warning;
            border-title-color: $warning;
            border-title-style: bold;
            background: $surface;
        }

        #text {
            width: auto;
            max-width: 62;
            margin-bottom: 1;
        }

        #answers {
            width: auto;
            height: auto;
        }

        Button {
            margin-right: 2;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes", tooltip="Do it"),
        Binding("n,escape", "answer(False)", "No", id="confirm.no", tooltip="Leave everything as it is"),
        Binding("left,right", "app.focus_next", "Other", show=False, id="confirm.other", tooltip="The other answer"),
    ]

    def __init__(self, question: str, text: str, yes: str) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._yes = yes

    def compose(self) -> ComposeResult:
        """Make the parts; the harmless answer has the focus."""
        # Not above: the first picture needs no catalogue of keys.
        from tui.keymap import key_of

        with Vertical(id="question") as box:
            box.border_title = self._question
            yield Label(self._text, id="text", markup=False)
            with Horizontal(id="answers"):
                yield Button(
                    f"{self._yes} ({key_of(self.app, 'confirm.yes')})", id="yes", variant="error", compact=True
                )
                yield Button(f"Leave it ({key_of(self.app, 'confirm.no')})", id="no", compact=True)
        yield KeyFooter()

    def on_mount(self) -> None:
        """Focus the harmless answer."""
        if not self.display:
            return  # It is left already, before it had parts.
        self.query_one("#no").focus()

    def on_button_pressed(self, message: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(message.button.id == "yes")

    def action_answer(self, sure: bool) -> None:
        """Answer."""
        self.dismiss(sure)
