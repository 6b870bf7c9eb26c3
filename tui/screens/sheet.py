"""What small sheets share: a frame with a title in the middle of the screen, and the keys that work below it."""

from __future__ import annotations

from typing import TypeVar

from textual.containers import Vertical
from textual.screen import ModalScreen

Result = TypeVar("Result")


class SheetScreen(ModalScreen[Result]):
    """A sheet: what it shows is made within `frame`, a KeyFooter after it."""

    DEFAULT_CSS = """
    SheetScreen {
        align: center middle;

        #sheet {
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
        }

        OptionList {
            height: auto;
            max-height: 16;
            border: none;
            background: $surface;

            &:focus {
                border: none;
            }
        }
    }
    """

    def frame(self, title: str) -> Vertical:
        """Return the frame, for a `with`."""
        sheet = Vertical(id="sheet")
        sheet.border_title = title
        return sheet
