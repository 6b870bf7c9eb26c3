"""The settings of a conversation on a sheet: the system prompt and how the model chooses tokens, checked as typed."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid
from textual.widgets import Input, Label, Static, TextArea

from backends.chat_settings import SETTINGS, Sampling, changed, written
from backends.errors import GpuboxError
from tui.screens.sheet import SheetScreen
from tui.themes import palette
from tui.widgets.key_footer import KeyFooter

Settings = tuple[str, Sampling]


class ChatSettingsScreen(SheetScreen[Settings | None]):
    """Give back the system prompt and the settings; nothing is given back while one of them is wrong."""

    DEFAULT_CSS = """
    ChatSettingsScreen {
        #sheet {
            width: 76;
            max-width: 98%;
            max-height: 98%;
        }

        #system {
            height: 5;
            border: none;
            border-left: outer $border;
            background: $panel;

            &:focus {
                border: none;
                border-left: outer $primary;
            }
        }

        Grid {
            grid-size: 4;
            grid-columns: 19 1fr 12 1fr;
            grid-rows: 1;
            height: auto;
            margin: 1 0;
        }

        Label {
            color: $dim;
        }

        Input {
            background: $panel;

            &.-invalid {
                color: $error;
            }
        }

        #about {
            height: 2;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Leave it", id="settings.leave", tooltip="Change nothing"),
        Binding("ctrl+s", "take", "Take it", priority=True, id="settings.take", tooltip="Take the settings"),
    ]

    def __init__(self, system: str, sampling: Sampling) -> None:
        super().__init__()
        self._system = system
        self._sampling = sampling

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with self.frame("How it answers") as sheet:
            sheet.border_subtitle = "Tab goes on to the next"
            yield Label("System prompt")
            yield TextArea(self._system, id="system", compact=True, tab_behavior="focus")
            with Grid():
                for name in SETTINGS:
                    yield Label(name)
                    yield Input(written(self._sampling, name), placeholder="the model's own", id=name, compact=True)
            yield Static(id="about")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Begin where most want to change something."""
        self.query_one("#temperature", Input).focus()

    def on_descendant_focus(self) -> None:
        """Say what the setting does."""
        self._tell()

    @on(Input.Changed)
    def _typed(self) -> None:
        self._tell()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_take()

    def _problem(self, name: str) -> GpuboxError | None:
        try:
            changed(self._sampling, name, self.query_one(f"#{name}", Input).value)
        except GpuboxError as problem:
            return problem
        return None

    def _tell(self) -> None:
        """Say what is wrong, of the setting that is being typed first; else what it does."""
        colours, focused = palette(self.app), self.focused.id if self.focused is not None else None
        problems = {name: problem for name in SETTINGS if (problem := self._problem(name)) is not None}
        for name in SETTINGS:
            self.query_one(f"#{name}", Input).set_class(name in problems, "-invalid")
        about = self.query_one("#about", Static)
        if problems:
            problem = problems.get(focused or "") or next(iter(problems.values()))
            about.update(Text(f"✗ {problem.message}: {problem.hint}", colours.bad))
        elif focused in SETTINGS:
            setting = SETTINGS[focused]
            about.update(Text(f"{focused}: {setting.about} ({setting.allowed})", colours.dim))
        else:
            about.update(Text("What the model is told before all questions; nothing for none", colours.dim))

    def action_take(self) -> None:
        """Give back what was typed, if all of it makes sense."""
        sampling = self._sampling
        for name in SETTINGS:
            field = self.query_one(f"#{name}", Input)
            try:
                sampling = changed(sampling, name, field.value)
            except GpuboxError:
                field.focus()
                self.app.bell()
                return
        self.dismiss((self.query_one("#system", TextArea).text.strip(), sampling))
