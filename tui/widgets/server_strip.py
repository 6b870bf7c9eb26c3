"""A strip of a server's figures: what it does now, and its last minutes, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical

from backends.snapshots import Missing, Series, Server
from tui.format import count, percent, shown
from tui.themes import Palette, palette
from tui.widgets.bars import faded, history
from tui.widgets.live_text import LiveText

MINUTES = 10
GAP = 3


class ServerStrip(Vertical):
    """Tokens, requests, KV cache and TTFT of the selected server."""

    DEFAULT_CSS = """
    ServerStrip LiveText { text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, classes="panel")
        self.server: str | None = None
        self._series: Series | None = None

    def compose(self) -> ComposeResult:
        """Make the part."""
        yield LiveText()

    def follow(self, server: Server | None) -> None:
        """Show the newest figures of `server`."""
        name = server.name if server else None
        if name != self.server:
            self.server, self._series = name, None
        if server is not None and self.size.width > 0:
            width, height = self.size.width, self.size.height
            self.query_one(LiveText).show(strip_text(server, self._series, width, height, palette(self.app)))

    def take(self, name: str, series: Series) -> None:
        """Keep the history of `name` for the next drawing, if it is still the one that is shown."""
        if name == self.server:
            self._series = series

    @property
    def lacks_history(self) -> bool:
        """Whether the history of the server that is shown has not been read yet."""
        return self.server is not None and self._series is None


def strip_text(server: Server, series: Series | None, width: int, height: int, colours: Palette) -> Text:
    """Draw the figures in `width` × `height` cells; without an engine that tells any, say why."""
    metrics = server.metrics
    if isinstance(metrics, Missing):
        return Text(f"no figures: {metrics.reason}", style=colours.dim)
    requests = f"{shown(metrics.running, count)} running, {shown(metrics.waiting, count)} waiting"
    ttft = metrics.ttft if not isinstance(metrics.ttft, Missing) else None
    panels: tuple[tuple[str, str, str, float | None, str], ...] = (
        ("tok/s out", shown(metrics.generation_tokens_per_s, count), "generation_tokens_per_s", None, colours.primary),
        ("requests", requests, "running", None, colours.secondary),
        ("KV cache", shown(metrics.kv_cache_usage, percent), "kv_cache_usage", 1.0, colours.accent),
        ("TTFT p50", shown(ttft.p50_s if ttft else None, _seconds), "ttft_p50_s", None, colours.warn),
    )
    each = (width - GAP * (len(panels) - 1)) // len(panels)
    rows = max(0, height - 1)
    drawn = [_panel(*panel, series, each, rows, colours) for panel in panels]
    lines = []
    for parts in zip(*drawn, strict=True):
        line = Text()
        for part in parts:
            part.truncate(each, pad=True)
            line.append_text(part).append(" " * GAP)
        line.rstrip()
        lines.append(line)
    return Text("\n", no_wrap=True).join(lines)


def _panel(
    title: str,
    figure: str,
    name: str,
    top: float | None,
    colour: str,
    series: Series | None,
    width: int,
    rows: int,
    colours: Palette,
) -> list[Text]:
    heading = Text.assemble((title, f"bold {colour}"), (f"  {figure}", colours.text))
    values = _recent(series, name)
    most = top or max((value for value in values if value is not None), default=0.0)
    chart = history(values, width, rows, most) if values else [" " * width] * rows
    shades = [faded(colour, colours.background, row, rows) for row in range(rows)]
    return [heading, *(Text(line, style=shade) for line, shade in zip(chart, shades, strict=True))]


def _recent(series: Series | None, name: str) -> Sequence[float | None]:
    if series is None or not series.at:
        return ()
    since = series.at[-1] - MINUTES * 60
    return [value for at, value in zip(series.at, series.points.get(name, ()), strict=False) if at >= since]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
