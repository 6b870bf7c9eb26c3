"""One question with several answers, each with a key of its own; Esc gives none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Label, OptionList
from textual.widgets.option_list import Option

from tui.widgets.key_footer import KeyFooter


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its key, what it is called in code, and what it says."""

    key: str
    value: str
    text: str


class ChoiceScreen(ModalScreen[str | None]):
    """Ends with the value of the answer that was chosen, or with None; the first answer has the cursor."""

    CSS_PATH = "../styles/profiles.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", id="choice.leave", tooltip="Choose none of them"),
    ]

    def __init__(self, question: str, text: str, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._question = question
        self._text = text
        self._answers = tuple(answers)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="sheet asks") as box:
            box.border_title = self._question
            yield Label(self._text, classes="said", markup=False)
            yield OptionList(*(Option(f"{one.key}  {one.text}", one.value) for one in self._answers), markup=False)
        yield KeyFooter()

    @on(OptionList.OptionSelected)
    def _chosen(self, message: OptionList.OptionSelected) -> None:
        self.dismiss(message.option_id)

    def on_key(self, event: Key) -> None:
        """Answer by an answer's own key."""
        answer = next((one for one in self._answers if one.key == event.character), None)
        if answer is not None:
            event.stop()
            self.dismiss(answer.value)
