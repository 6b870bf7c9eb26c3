"""The question before somebody else's process is ended: its pid must be typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Label

from backends.snapshots import GpuProcess
from tui.format import fit, memory, shown
from tui.widgets.key_footer import KeyFooter

LINE_CELLS = 66


class EndForeignScreen(ModalScreen[GpuProcess | None]):
    """Lists processes that are not gpubox's; returns the one whose pid was typed, or None."""

    DEFAULT_CSS = """
    EndForeignScreen {
        align: center middle;

        #question {
            width: auto;
            max-width: 76;
            height: auto;
            max-height: 100%;
            padding: 1 2;
            border: round $error;
            border-title-color: $error;
            border-title-style: bold;
            background: $surface;
        }

        Label {
            width: auto;
            max-width: 70;
        }

        #processes {
            margin: 1 0;
        }

        Input, Input:focus {
            width: 30;
            height: 1;
            border: none;
            padding: 0 1;
            background: $panel;
        }

        #problem {
            color: $warning;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Leave it", id="foreign.leave", tooltip="Leave every process alone"),
    ]

    def __init__(self, title: str, processes: Sequence[GpuProcess]) -> None:
        super().__init__()
        self._title = title
        self._processes = {str(process.pid): process for process in processes}

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="question") as box:
            box.border_title = self._title
            yield Label("It is not gpubox's. To end it (SIGTERM, then SIGKILL), type its pid and press Enter.")
            yield Label("\n".join(map(_described, self._processes.values())), id="processes", markup=False)
            yield Input(placeholder="pid", type="integer")
            yield Label("", id="problem", markup=False)
        yield KeyFooter()

    @on(Input.Submitted)
    def _typed(self, message: Input.Submitted) -> None:
        process = self._processes.get(message.value.strip())
        if process is not None:
            self.dismiss(process)
        else:
            self.query_one("#problem", Label).update(f"{message.value or 'nothing'} is none of these pids")


def _described(process: GpuProcess) -> str:
    note = f"\n  {process.note}" if process.note else ""
    held = shown(process.memory_bytes, memory)
    return fit(f"pid {process.pid}  {process.user}  {held}  {process.command}", LINE_CELLS) + note
