"""Metrics: the selected server's own figures and those of its GPUs, now and over the last minutes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import ceil
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from backends.errors import GpuboxError
from backends.metrics.series import gpu_figures, server_figures
from backends.snapshots import Missing, Series, Server, Snapshot
from tui.format import count, duration, fit
from tui.screens.base import GpuboxScreen
from tui.themes import STATES, Palette, palette
from tui.widgets.metric_history import History
from tui.widgets.metric_readings import METRICS, Reading, host_figures, read_gpu, read_host
from tui.widgets.metric_tile import MetricTile
from tui.widgets.status_bar import describe

WINDOWS_S = (300.0, 900.0, 3600.0)
TILE_CELLS = 38
MOST_COLUMNS = 5
TILE_LINES = (3, 15)
HOST = "host"

Shown = tuple[Reading, History]
"""What a tile shows, and where the points of its charts are kept."""


class MetricsScreen(GpuboxScreen):
    """Tiles, as many beside each other as there is room for."""

    CSS_PATH = "../styles/metrics.tcss"
    AUTO_FOCUS = "#tiles"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "window", "Minutes", id="metrics.window", tooltip="Show the last 5, 15 or 60 minutes"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._window = 0
        self._of: tuple[str, tuple[str, ...]] | None = None
        self._histories: dict[str, History] = {}

    def compose(self) -> ComposeResult:
        """Make the parts; there are as many tiles as there are figures."""
        yield Static(id="head")
        yield VerticalScroll(id="tiles")
        yield Static("Waiting for the keeper…", id="empty")

    def on_screen_resume(self) -> None:
        """Read anew what went by while nobody looked."""
        self._of = None

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the newest figures."""
        self.query_one("#tiles").display = server is not None
        self.query_one("#empty").display = server is None
        width, colours = self.app.size.width - 2, palette(self.app)
        self.query_one("#head", Static).update(
            head(server, WINDOWS_S[self._window], self.gpubox.now(), width, colours) if server else Text()
        )
        if server is None:
            self.query_one("#empty", Static).update(
                "There is no server, so there are no figures.\n\nPress 2, choose a profile and start it."
            )
            return
        if self._of != (server.name, server.gpus):
            self._of = (server.name, server.gpus)
            self._histories = {name: History() for name in (server.name, HOST, *server.gpus)}
            self._read_histories(server)
        self._remember(snapshot, server)
        self._lay_out(self._tiles(snapshot, server))

    def _remember(self, snapshot: Snapshot, server: Server) -> None:
        if not isinstance(server.metrics, Missing):
            self._histories[server.name].append(server.metrics.at, server_figures(server.metrics))
        for gpu in snapshot.box.gpus:
            if gpu.uuid in self._histories:
                self._histories[gpu.uuid].append(snapshot.box.at, gpu_figures(gpu))
        self._histories[HOST].append(snapshot.box.at, host_figures(snapshot.box.host))

    def _tiles(self, snapshot: Snapshot, server: Server) -> list[Shown]:
        """Return what each tile shows."""
        tiles = [(metric.reading(server.metrics), self._histories[server.name]) for metric in METRICS]
        held = [gpu for gpu in snapshot.box.gpus if gpu.uuid in server.gpus]
        tiles += [(read_gpu(gpu), self._histories[gpu.uuid]) for gpu in held]
        if not server.gpus:
            tiles.append((read_host(snapshot.box.host), self._histories[HOST]))
        return tiles

    def _lay_out(self, shown: list[Shown]) -> None:
        """Give each figure a tile, in as many columns as fit, as high as there is room for."""
        box = self.query_one("#tiles", VerticalScroll)
        tiles = list(box.query(MetricTile))
        for tile in tiles[len(shown) :]:
            tile.remove()
        if len(tiles) < len(shown):
            new = [MetricTile() for _ in shown[len(tiles) :]]
            box.mount_all(new)
            tiles += new
        most = max(2, min(MOST_COLUMNS, box.content_size.width // TILE_CELLS))
        rows = ceil(len(shown) / most)
        columns = ceil(len(shown) / rows)
        lines = max(TILE_LINES[0], min(TILE_LINES[1], box.content_size.height // rows))
        box.styles.grid_size_columns = columns
        box.styles.grid_rows = str(lines)
        now, window_s = self.gpubox.now(), WINDOWS_S[self._window]
        for tile, (reading, past) in zip(tiles, shown, strict=False):
            tile.show(reading, past, now, window_s)

    @work(group="histories", exclusive=True)
    async def _read_histories(self, server: Server) -> None:
        """Ask the keeper for the last hour; without it the charts begin now."""
        histories, link = self._histories, self.gpubox.link
        asked: list[tuple[str, Callable[[str], Awaitable[Series]]]] = [(server.name, link.server_series)]
        asked += [(uuid, link.gpu_series) for uuid in server.gpus]
        for name, read in asked:
            try:
                histories[name].take(await read(name))
            except GpuboxError:
                continue
        self._changed()

    def action_window(self) -> None:
        """Show more of the past, or less."""
        self._window = (self._window + 1) % len(WINDOWS_S)
        self._changed()


def head(server: Server, window_s: float, now: float, width: int, colours: Palette) -> Text:
    """Say whose figures these are, or why there are none, and how much of the past is drawn."""
    sign, _ = STATES[server.state]
    said = f"{sign} {describe(server)} {duration(now - server.state_since)}"
    text = Text.assemble(
        (server.name, f"bold {colours.text}"), (f"  {said}", colours.state(server.state)), no_wrap=True
    )
    if isinstance(server.metrics, Missing):
        return text.append(f"  no figures: {fit(server.metrics.reason, width - text.cell_len - 14)}", colours.warn)
    window = f"last {window_s / 60:.0f} min"
    room = width - text.cell_len - len(window) - 4
    requests = server.metrics.requests_total
    parts = [] if isinstance(requests, Missing) else [f"{count(requests)} requests"]
    told = " · ".join([*parts, f"{server.engine} {server.engine_version or ''}"])
    text.append(f"  {fit(told, max(0, room))}", colours.dim)
    return text.append(" " * max(1, width - text.cell_len - len(window))).append(window, colours.dim)
