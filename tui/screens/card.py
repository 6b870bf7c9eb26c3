"""The crash card of a failed server: what began it, the remedies, and the change that each makes; Enter applies it."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from backends.diagnosis.fix import Fix
from backends.snapshots import Server
from backends.starts import Card
from tui.fixing import Choice
from tui.themes import palette
from tui.widgets.crash_card import card_text, diff_text
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_text import can_scroll

CARD_CELLS = 100
SHORT_ROWS = 32
FRAMES, FRAMES_SHORT = 5, 2


class CardScreen(ModalScreen[Fix | None]):
    """Ends with the change to make, or with None."""

    CSS_PATH = "../styles/card.tcss"
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+s",
            "apply",
            "Apply and start",
            key_display="enter",
            id="card.apply",
            tooltip="Make the change, start it again",
        ),
        Binding("escape,f", "dismiss(None)", "Leave", id="card.leave", tooltip="Change nothing"),
        *(
            Binding(str(number), f"choose({number})", show=False, id=f"card.choose_{number}", tooltip="Choose a remedy")
            for number in range(1, 10)
        ),
        Binding("ctrl+down", "scroll(1)", "Down", show=False, id="card.down", tooltip="Scroll the change"),
        Binding("ctrl+up", "scroll(-1)", "Up", show=False, id="card.up", tooltip="Scroll the change"),
    ]

    def __init__(self, server: Server, card: Card, choices: tuple[Choice, ...]) -> None:
        super().__init__()
        self._server = server
        self._card = card
        self._choices = choices

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="card") as box:
            box.border_title = f"{self._server.name}: {self._card.cause}"
            yield Static(id="what")
            yield OptionList(*(Text(f"{n}. {one.remedy.text}") for n, one in enumerate(self._choices, 1)))
            with VerticalScroll(id="change", can_focus=False) as change:
                change.border_title = f"The change of {self._server.profile}.toml"
                yield Static(id="diff")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Begin with the first remedy that changes something."""
        if not self.display:
            return  # It is left already, before it had parts.
        options = self.query_one(OptionList)
        options.display = bool(self._choices)
        self.query_one("#change").display = bool(self._choices)
        if self._choices:
            options.highlighted = next((n for n, one in enumerate(self._choices) if one.fix is not None), 0)

    def on_resize(self, message: Resize) -> None:
        """Show as much as there is room for."""
        if not self.display:
            return
        is_short = message.size.height < SHORT_ROWS
        self.set_class(is_short, "short")
        width = min(CARD_CELLS, message.size.width) - 4
        frames = FRAMES_SHORT if is_short else FRAMES
        self.query_one("#what", Static).update(card_text(self._card, width, frames, palette(self.app)))
        self.call_after_refresh(self._look)

    @on(OptionList.OptionHighlighted)
    def _look(self) -> None:
        """Show what the highlighted remedy changes."""
        if not self.display:
            return  # It is being left: its parts go one by one.
        choice, colours = self._chosen, palette(self.app)
        if choice is None:
            return
        if choice.fix is None:
            told = Text(choice.why_not, style=colours.dim)
        else:
            notes = [Text(note, style=colours.warn) for note in choice.fix.notes]
            diff = [diff_text(choice.fix.diff, colours)] if choice.fix.diff else []
            told = Text("\n").join([*diff, *notes])
        self.query_one("#diff", Static).update(told)
        self.query_one("#change").scroll_home(animate=False)
        self.refresh_bindings()

    @property
    def _chosen(self) -> Choice | None:
        at = next((options.highlighted for options in self.query(OptionList)), None)
        return None if at is None or at >= len(self._choices) else self._choices[at]

    @on(OptionList.OptionSelected)
    def _selected(self) -> None:
        self.action_apply()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to apply only what can be, another remedy where there is one, to scroll where something is hidden."""
        match action:
            case "apply":
                return self._chosen is not None and self._chosen.fix is not None
            case "choose":
                others = [number for number, one in enumerate(self._choices, 1) if one is not self._chosen]
                return parameters[0] in others
            case "scroll":
                return any(can_scroll(change, parameters[0]) for change in self.query("#change"))
        return True

    def action_apply(self) -> None:
        """End with the highlighted remedy's change."""
        choice = self._chosen
        if choice is not None and choice.fix is not None:
            self.dismiss(choice.fix)

    def action_choose(self, number: int) -> None:
        """Highlight a remedy by its number."""
        self.query_one(OptionList).highlighted = number - 1

    def action_scroll(self, lines: int) -> None:
        """Show what the change has no room for."""
        self.query_one("#change").scroll_relative(y=lines, animate=False)
