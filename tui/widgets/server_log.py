"""The last lines of a server's log, for beside its details; the whole of it is on the logs screen."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.style import Style
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical

from backends.processes.logs import tail
from tui.themes import Palette, palette
from tui.widgets.live_text import LiveText
from tui.widgets.log_view_lines import LineStyles, laid_out

LOOK_S = 1.0


class ServerLogTail(Vertical):
    """Reads while `follow` names a log, and only where the file has grown; reading is done in a thread."""

    DEFAULT_CSS = """
    ServerLogTail { height: 1fr; }
    ServerLogTail LiveText { height: 1fr; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="panel")
        self._path: Path | None = None
        self._seen: tuple[int, int, int] | None = None

    def compose(self) -> ComposeResult:
        """Make the part."""
        yield LiveText()

    def on_mount(self) -> None:
        """Look again and again, as long as somebody sees it."""
        self.set_interval(LOOK_S, self._look)

    def follow(self, path: str | None) -> None:
        """Show the end of the log at `path`; None shows nothing, and reads nothing."""
        wanted = Path(path) if path else None
        if wanted != self._path:
            self._path, self._seen = wanted, None
            self.query_one(LiveText).show(Text())
            self._look()

    def on_resize(self) -> None:
        """Read as many lines as there is room for."""
        self._seen = None
        self._look()

    def _look(self) -> None:
        if self._path is not None and self.screen.is_current and self.is_on_screen and self.size.height > 0:
            self._read(self._path, self.size.height)

    @work(group="tail", exclusive=True)
    async def _read(self, path: Path, rows: int) -> None:
        before = self._seen
        seen, lines = await asyncio.to_thread(_newest, path, rows, before)
        if path != self._path or lines is None:
            return
        self._seen = seen
        colours = palette(self.app)
        text = Text("\n", no_wrap=True).join(_line(one, self.size.width, colours) for one in lines)
        self.query_one(LiveText).show(text if lines else Text("nothing is logged yet", style=colours.dim))


def _newest(
    path: Path, rows: int, before: tuple[int, int, int] | None
) -> tuple[tuple[int, int, int] | None, list[str] | None]:
    """Return what tells one state of the file from another, and its last lines; None where they are as `before`."""
    try:
        found = path.stat()
        seen = (found.st_ino, found.st_size, rows)
        return (seen, None) if seen == before else (seen, tail(path, rows))
    except OSError as problem:
        return None, [f"gpubox: {path.name} cannot be read: {problem.strerror or problem}"]


def _line(line: str, width: int, colours: Palette) -> Text:
    plain, dim = Style(color=colours.text), Style(color=colours.dim)
    bad, warn = Style(color=colours.bad), Style(color=colours.warn)
    styles = LineStyles(plain, dim, bad, warn, dim, plain, plain)
    text = laid_out(line, styles, whole=False)
    text.truncate(width, overflow="ellipsis")
    return text
