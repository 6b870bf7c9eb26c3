"""The control center in a real terminal: only what changed is written, and never faster than the terminal takes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import IO, Any

from rich.color import ColorSystem
from rich.console import RenderableType
from textual import on
from textual._ansi_sequences import SYNC_END, SYNC_START
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.app import App
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.geometry import Offset
from textual.messages import TerminalSupportsSynchronizedOutput
from textual.screen import ModalScreen, Screen

from tui.app import GpuboxApp
from tui.painting import Painter
from tui.stylesheet import KeptStylesheet

NOWHERE = Offset(0, 0)
"""Where the hidden cursor is while nobody types text: then it matters to no input method, and stays where it is."""


CONFIRMED_BYTES = 1024
"""So much may be on its way without a question to the terminal; a frame with new figures has a fourth of it."""

QUESTION = "\x1b[?2026$p"
"""Textual asks this at the start too: whether frames can be held back until they are whole."""

LONGEST_WAIT_S = 10.0
"""Who has answered before, and does not within this, does not answer any more."""

LAST_WAIT_S = 1.5
"""So long an answer may take that is still to come when the user leaves: later it would be typed into the shell."""

PATIENCE_S = 0.5
"""On a line on which frames take longer than this they are cut into parts of about as long."""

LEAST_BYTES = 256

AHEAD_S = 1.0
"""So long after the first picture the other panels and the launch sheet are imported."""


class _Drain:
    """The terminal's file, as Textual's writing thread sees it; `when_empty` is called once all has left."""

    def __init__(self, file: IO[str], when_empty: Callable[[], object]) -> None:
        self._file = file
        self._when_empty = when_empty

    def write(self, text: str) -> int:
        """Write, for as long as the terminal takes."""
        return self._file.write(text)

    def flush(self) -> None:
        """Wait until all has left; the thread does so whenever it has nothing more to write."""
        self._file.flush()
        self._when_empty()

    def fileno(self) -> int:
        """The terminal."""
        return self._file.fileno()


class PacedDriver(LinuxDriver):
    """Textual's own, which also knows whether the terminal has taken what was written."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._taken = threading.Event()
        self._taken.set()
        assert self._file is not None
        self._file = _Drain(self._file, self._was_taken)  # type: ignore[assignment]

    @property
    def is_behind(self) -> bool:
        """Whether the terminal is still being written to."""
        return not self._taken.is_set()

    def write(self, data: str) -> None:
        """Have something written, in the background."""
        self._taken.clear()
        super().write(data)

    def start_application_mode(self) -> None:
        """Take over the terminal, whatever stands on it."""
        if isinstance(self._app, TerminalApp):
            self._app.forget_terminal()
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """Give the terminal back, with no colour left on."""
        self.write("\x1b[m")
        super().stop_application_mode()

    def _was_taken(self) -> None:
        self._taken.set()
        loop = self._app._loop
        if isinstance(self._app, TerminalApp) and self._app.waits_for_terminal and loop is not None:
            loop.call_soon_threadsafe(self._app.paint)


class TerminalApp(GpuboxApp):
    """The control center, painted sparingly.

    What has left for the terminal may still be far away from it: ssh and the kernel hold a lot. So after some bytes
    the terminal is asked something that it answers once it has come that far, and until then nothing more is painted:
    a slow line shows what is newest, not all that was. A terminal that has answered no such question is asked none.
    """

    waits_for_terminal = False
    _answers = True
    _unconfirmed_bytes = 0
    _asked_at: float | None = None
    _end: Callable[[], object] | None = None
    _limit: int | None = None
    _painter: Painter | None = None
    _painted_mode: Screen[Any] | None = None
    _cursor = NOWHERE

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """See GpuboxApp."""
        super().__init__(*arguments, **options)
        self.stylesheet = KeptStylesheet(variables=self.get_css_variables())

    def on_ready(self) -> None:
        """Make ready for other panels once the first stands: importing one takes longer than showing it."""
        ahead = threading.Thread(target=_import_all, args=((*self.PANELS, "launch"),), name="ahead", daemon=True)
        self.set_timer(AHEAD_S, ahead.start)

    def get_driver_class(self) -> type[Driver]:
        """Return the driver that tells whether the terminal keeps up, in place of Textual's own."""
        found = super().get_driver_class()
        return PacedDriver if found is LinuxDriver else found

    def forget_terminal(self) -> None:
        """Paint everything at the next occasion."""
        if self._painter is not None:
            self._painter.forget()

    def _display(self, screen: Screen[Any], renderable: RenderableType | None) -> None:
        driver = self._driver
        if (
            not isinstance(renderable, LayoutUpdate | ChopsUpdate)
            or not self._running
            or self._closed
            or self._batch_count
            or self.is_headless
            or driver is None
            or driver.is_inline
        ):
            super()._display(screen, renderable)
            return
        if self._painter is None:
            self._painter = Painter(self.console._color_system or ColorSystem.TRUECOLOR)
        self._painter.resize(*self.size)
        if not isinstance(screen, ModalScreen) and screen is not self._painted_mode:
            self._painted_mode = screen
            if not self.waits_for_terminal:
                # Whoever changes the mode gets a whole picture, also where something else has spoilt the terminal.
                self._painter.forget()
        self._painter.take(renderable)
        self.paint()
        self.post_display_hook()

    def paint(self) -> None:
        """Write what the terminal does not show yet, unless it is still busy with what was written before."""
        driver, painter = self._driver, self._painter
        if driver is None or painter is None or not self._running or self._closed:
            return
        if self._asked_at is not None and time.monotonic() - self._asked_at >= LONGEST_WAIT_S:
            self._answers, self._asked_at = False, None
        if self._asked_at is not None or (isinstance(driver, PacedDriver) and driver.is_behind):
            self.waits_for_terminal = True
            return
        cursor = self.screen.outer_size.clamp_offset(self.cursor_position)
        said = painter.paint(self._limit)
        self.waits_for_terminal = painter.has_more
        if not said and cursor == self._cursor:
            return
        self._cursor = self._previous_cursor_position = cursor
        if cursor != NOWHERE:
            said += f"\x1b[{cursor.y + 1};{cursor.x + 1}H"
        if self._sync_available:
            said = f"{SYNC_START}{said}{SYNC_END}"
            self._unconfirmed_bytes += len(said)
            if self._answers and self._end is None and self._unconfirmed_bytes > CONFIRMED_BYTES:
                said += QUESTION
                self._asked_at = time.monotonic()
                self.set_timer(LONGEST_WAIT_S, self.paint)
        driver.write(said)
        driver.flush()

    @on(TerminalSupportsSynchronizedOutput)
    def _confirmed(self) -> None:
        """Go on painting: the terminal has come to the question."""
        self._answers = True
        if self._asked_at is None:
            return
        took_s, self._asked_at = time.monotonic() - self._asked_at, None
        rate = self._unconfirmed_bytes / max(took_s, 1e-3)
        self._limit = max(LEAST_BYTES, int(rate * PATIENCE_S)) if took_s > PATIENCE_S else None
        self._unconfirmed_bytes = 0
        if self._end is not None:
            self._end_once()
        elif self.waits_for_terminal:
            self.paint()

    def exit(self, result: None = None, return_code: int = 0, message: RenderableType | None = None) -> None:
        """Leave once the terminal has answered; at once where it was asked nothing, or where told twice."""
        is_second, self._end = self._end is not None, partial(super().exit, result, return_code, message)
        if self._asked_at is None or is_second:
            self._end_once()
        else:
            self.set_timer(LAST_WAIT_S, self._end_once)

    def _end_once(self) -> None:
        if self._end is not None and not self._exit:
            self._end()


def _import_all(screens: Iterable[str]) -> None:
    """Runs in a thread of its own, which takes turns with the screen's."""
    for screen in screens:
        import_module(f"tui.screens.{screen}")
