"""A command line becomes a profile: pasted or typed above, what was understood of it and what was not below."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Label, Static, TextArea

from profiles.arguments import lint
from profiles.commands import WHERE, import_command
from profiles.errors import InvalidProfileError, ProfileProblem
from profiles.schema import parse_profile
from profiles.store import to_toml
from tui.keymap import key_of
from tui.screens.profile_name import free_name
from tui.themes import palette
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_text import can_scroll
from tui.widgets.profile_side import problem_text
from tui.widgets.profile_table import ProfileRow

PAUSE_S = 0.15
"""So long nothing must be typed before it is read anew."""

HOW = (
    "Paste a command line: vllm serve …, docker run … vllm/vllm-openai …, or transformers serve ….\n"
    "Nothing is run and nothing is saved: {key} takes what was understood into the editor."
)


@dataclass(frozen=True, slots=True)
class Understood:
    """What a command line amounts to as a profile's TOML; `notes` tell what was left out or changed."""

    name: str
    toml: str
    notes: tuple[str, ...]
    warnings: tuple[ProfileProblem, ...]


class ImportScreen(ModalScreen[Understood | None]):
    """Ends with what was understood, or with None."""

    CSS_PATH = "../styles/profiles.tcss"
    AUTO_FOCUS = "TextArea"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "take", "Take it to the editor", id="import.take", tooltip="Edit it; nothing is saved yet"),
        Binding("escape", "dismiss(None)", "Leave", id="import.leave", tooltip="Take nothing"),
        Binding("ctrl+down", "scroll(1)", "Down", show=False, id="import.down", tooltip="Scroll what was understood"),
        Binding("ctrl+up", "scroll(-1)", "Up", show=False, id="import.up", tooltip="Scroll what was understood"),
    ]

    def __init__(self, profiles: Sequence[ProfileRow]) -> None:
        super().__init__()
        self._profiles = tuple(profiles)
        self._pause: Timer | None = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(classes="sheet") as box:
            box.border_title = "Import a command line"
            yield Label(HOW.format(key=key_of(self.app, "import.take", typing=True)), classes="said", markup=False)
            yield TextArea(compact=True, soft_wrap=True, highlight_cursor_line=False, placeholder="vllm serve …")
            with VerticalScroll(id="understood", can_focus=False):
                yield Static(id="reading")
        yield KeyFooter()

    @on(TextArea.Changed)
    def _typed(self) -> None:
        if self._pause is not None:
            self._pause.stop()
        self._pause = self.set_timer(PAUSE_S, self._read)

    @work(group="reading", exclusive=True)
    async def _read(self) -> None:
        if not self.display:
            return  # It is being left: its parts go one by one.
        text, colours = self.query_one(TextArea).text.strip(), palette(self.app)
        shown = Text()
        if text:
            try:
                found = await asyncio.to_thread(_understand, text)
            except InvalidProfileError as wrong:
                shown = Text("\n").join(problem_text(one, colours, wrong=True) for one in wrong.problems)
            else:
                lines = [Text(f"✓ {free_name(found.name, self._profiles)}.toml would say", style=colours.good)]
                lines.append(Text(found.toml.rstrip(), style=colours.text))
                lines += [Text(f"· {note}", style=colours.warn) for note in found.notes]
                lines += [problem_text(one, colours, wrong=False) for one in found.warnings]
                shown = Text("\n").join(lines)
        if self.display:
            self.query_one("#reading", Static).update(shown)
            self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to take only what was written, and to scroll only where something is hidden."""
        match action:
            case "take":
                return any(field.text.strip() for field in self.query(TextArea))
            case "scroll":
                return any(can_scroll(understood, parameters[0]) for understood in self.query("#understood"))
        return True

    @work(group="taking", exclusive=True)
    async def action_take(self) -> None:
        """End with what is understood of the text as it is now."""
        try:
            found = await asyncio.to_thread(_understand, self.query_one(TextArea).text.strip())
        except InvalidProfileError:
            self._read()
        else:
            if self.display:
                self.dismiss(found)

    def action_scroll(self, lines: int) -> None:
        """Show what there is no room for."""
        self.query_one("#understood").scroll_relative(y=lines, animate=False)


def _understand(text: str) -> Understood:
    """Read a command line; looks at the folders that it names, so not for the UI loop. Raises InvalidProfileError."""
    found = import_command(text)
    name = str(found.profile["name"])
    profile = parse_profile(found.profile, WHERE)
    _, _, toml = to_toml(profile).partition("\n")
    return Understood(name, toml, found.notes, lint(profile))
