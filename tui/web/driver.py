"""A browser tab in the terminal's place: what textual-serve's driver does, and an end where it has none.

The server's end of the pipe says that the tab is there. Once it is closed, for whatever reason (the tab was closed,
the server ended or was killed), the screen ends too, so that none is ever left behind.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import Any

from textual import messages
from textual.app import App
from textual.drivers.web_driver import WebDriver

GRACE_S = 5.0
"""So long a screen may take to end by itself."""

OURS = ("TEXTUAL_DRIVER", "TEXTUAL_COLOR_SYSTEM", "COLUMNS", "ROWS")
"""What the server tells by the environment; servers that are started from here are not to inherit it."""


class TabDriver(WebDriver):
    """Keys and sizes from standard input, pictures to standard output, in textual-serve's packets."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._write = partial(_write_all, self.fileno)
        for name in OURS:
            os.environ.pop(name, None)

    def run_input_thread(self) -> None:
        """Read until the tab is gone, then have the app end, by force where it does not."""
        super().run_input_thread()
        if self.exit_event.is_set():
            return
        last_resort = threading.Timer(GRACE_S, os._exit, (1,))
        last_resort.daemon = True
        last_resort.start()
        self._app.post_message(messages.ExitApp())


def _write_all(descriptor: int, data: bytes) -> int:
    """Write a whole packet: a signal may cut a write short, and the rest of the stream would make no sense."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    return len(data)
