"""A profile's new name, checked as it is typed; for a new one also the profile that it begins as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from profiles.schema import NAME
from tui.themes import palette
from tui.widgets.key_footer import KeyFooter
from tui.widgets.profile_table import ProfileRow

BLANK = "(blank)"
LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Named:
    """A name, and the profile whose text it begins with; None for a blank one."""

    name: str
    template: str | None


class NameScreen(ModalScreen[Named | None]):
    """Asks for a name, and where `templates` are given first for one of them; ends with None when left."""

    CSS_PATH = "../styles/profiles.tcss"
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Leave", id="name.leave", tooltip="Change nothing"),
    ]

    def __init__(
        self,
        title: str,
        name: str,
        profiles: Sequence[ProfileRow],
        *,
        template: str | None = None,
        choose: bool = False,
    ) -> None:
        """`profiles` are all there are; `choose` offers them as templates, with the cursor on `template`."""
        super().__init__()
        self._title = title
        self._suggested = name
        self._profiles = tuple(profiles)
        self._template = template
        self._choose = choose

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="sheet") as box:
            box.border_title = self._title
            box.border_subtitle = "Enter goes on"
            if self._choose:
                yield Label("Begin with a copy of")
                yield OptionList(
                    Option(f"{BLANK}  a model of your own", BLANK),
                    *(Option(_described(row), row.name) for row in self._profiles),
                    markup=False,
                )
            with Horizontal(classes="field"):
                yield Label("Name")
                yield Input(self._suggested, compact=True, select_on_focus=True)
            yield Static(id="problem")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Begin with the template, else with the name."""
        if not self.display:
            return  # It is left already, before it had parts.
        if not self._choose:
            self.query_one(Input).focus()
            return
        options = self.query_one(OptionList)
        options.highlighted = options.get_option_index(self._template) if self._template else 0
        options.focus()

    @on(OptionList.OptionHighlighted)
    def _look(self, message: OptionList.OptionHighlighted) -> None:
        """Suggest a name after the template, unless one was typed."""
        field = self.query_one(Input)
        if field.value == self._suggested:
            chosen = str(message.option_id)
            self._suggested = free_name("new" if chosen == BLANK else chosen, self._profiles)
            field.value = self._suggested

    @on(OptionList.OptionSelected)
    def _take(self) -> None:
        self.query_one(Input).focus()

    @on(Input.Changed)
    def _check(self) -> None:
        wrong = self._problem()
        self.query_one("#problem", Static).update(Text(f"✗ {wrong}" if wrong else "", style=palette(self.app).bad))

    def _problem(self) -> str:
        name = self.query_one(Input).value.strip()
        if not NAME.fullmatch(name):
            return (
                f"use a-z, 0-9, '.', '_' and '-', at most {LONGEST_NAME}, no '.' first" if name else "it needs a name"
            )
        own = {row.name for row in self._profiles if row.origin != "library"}
        return f"{name} is there already" if name in own else ""

    @on(Input.Submitted)
    def _submit(self) -> None:
        if self._problem():
            self._check()
            return
        template = self._template
        if self._choose:
            option = self.query_one(OptionList).highlighted_option
            template = None if option is None or option.id == BLANK else option.id
        self.dismiss(Named(self.query_one(Input).value.strip(), template))


def free_name(name: str, profiles: Sequence[ProfileRow]) -> str:
    """Return `name`, or the first of NAME-2, NAME-3 … that no profile has, the library's included."""
    taken = {row.name for row in profiles}
    numbered = (f"{name[: LONGEST_NAME - 4]}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def _described(row: ProfileRow) -> str:
    return f"{row.name}  {'broken' if row.problem else row.model} ({row.origin})"
