"""Metrics: the selected server's own figures and those of its GPUs over the last minutes, on one time axis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from math import ceil
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from backends.errors import GpuboxError
from backends.memory import divisions
from backends.metrics.series import gpu_figures, server_figures
from backends.snapshots import Event, Missing, Server, ServerState, Snapshot
from tui.format import clock_time, counted, duration, fit
from tui.screens.base import GpuboxScreen
from tui.themes import STATES, Palette, palette
from tui.widgets.metric_axis import TimeAxis
from tui.widgets.metric_chart import GUTTER, MetricChart, drawn
from tui.widgets.metric_history import History, high_and_low, merged_figures
from tui.widgets.metric_marks import Mark, mark_cell, marks_of, placed, told_at
from tui.widgets.metric_memory import MetricMemory
from tui.widgets.metric_readings import METRICS, Reading, Source, host_figures, read_gpus, read_host
from tui.widgets.metric_times import times_line
from tui.widgets.status_bar import describe

WINDOWS_S = (300.0, 900.0, 3600.0, 60.0)
MEMORY = ("memory_parts", "weights", "kv_cache", "cuda_graphs", "activation", "other_memory")
TILE_CELLS = 38
GAP = 2
MOST_COLUMNS = 5
TILE_LINES = (3, 15)
MOST_AT_ONCE = 8_000
"""Points of a history that are summed up before the loop takes a turn: some milliseconds' work."""
EDGE_TOOLTIP = "Read all figures at a moment; esc returns to now"
MARK_TOOLTIP = "Go to what happened before or after"
CHART_TOOLTIP = "Choose a chart"


class MetricsScreen(GpuboxScreen):
    """Charts, as many beside each other as there is room for; or one alone."""

    CSS_PATH = "../styles/metrics.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "window", "Minutes", id="metrics.window", tooltip="Show the last 1, 5, 15 or 60 minutes"),
        Binding("enter", "large", "Large", id="metrics.large", tooltip="Show the chosen chart alone, or all"),
        Binding("left,h", "cursor(-1)", "Earlier", id="metrics.earlier", tooltip=EDGE_TOOLTIP),
        Binding("right,l", "cursor(1)", "Later", id="metrics.later", tooltip=EDGE_TOOLTIP),
        Binding("H,shift+left", "mark(-1)", "Event before", show=False, id="metrics.mark_before", tooltip=MARK_TOOLTIP),
        Binding("L,shift+right", "mark(1)", "Event after", show=False, id="metrics.mark_after", tooltip=MARK_TOOLTIP),
        Binding("down,j", "chart(1)", "Next chart", show=False, id="metrics.next", tooltip=CHART_TOOLTIP),
        Binding("up,k", "chart(-1)", "Chart before", show=False, id="metrics.previous", tooltip=CHART_TOOLTIP),
        Binding("g", "gpu", "GPU", show=False, id="metrics.gpu", tooltip="The memory of the server's next GPU"),
        Binding("escape", "back", "Back", show=False, id="metrics.back", tooltip="To now, and to all charts"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._window = 0
        self._of: tuple[str, tuple[str, ...]] | None = None
        self._histories: dict[Source, History] = {}
        self._events: tuple[Event, ...] = ()
        self._marks: tuple[Mark, ...] = ()
        self._keys: tuple[str, ...] = ()
        self._chosen = ""
        self._is_large = False
        self._cursor_at: float | None = None
        self._axis = TimeAxis(0.0, WINDOWS_S[0], 1)

    def compose(self) -> ComposeResult:
        """Make the parts; there are as many charts as there are figures."""
        yield Static(id="head")
        yield VerticalScroll(id="charts", can_focus=False)
        yield MetricMemory(id="memory")
        yield Static(id="times")
        yield Static("Waiting for the keeper…", id="empty")

    def on_screen_resume(self) -> None:
        """Read anew what went by while nobody looked."""
        self._of = None

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the newest figures."""
        for part in ("#charts", "#times"):
            self.query_one(part).display = server is not None
        self.query_one("#empty").display = server is None
        memory, divided = self.query_one(MetricMemory), divisions(server, snapshot.box) if server else ()
        memory.display = bool(divided) and not self._is_large
        if divided:
            memory.show(divided, self.app.size.width - 2)
        if server is None:
            self._keys = ()
            self.query_one("#head", Static).update(Text())
            self.query_one("#empty", Static).update(
                "There is no server, so there are no figures.\n\n"
                f"Press {self.key_of('mode.servers')}, choose a profile and start it."
            )
            self.refresh_bindings()
            return
        if self._of != (server.name, server.gpus):
            self._of = (server.name, server.gpus)
            self._histories = {"server": History(), "gpus": History(), "host": History()}
            self._events, self._cursor_at = (), None
            self._read_histories(server)
        self._remember(snapshot, server)
        heard = tuple(event for event in self.gpubox.heard if event not in self._events)
        self._marks = marks_of(server, (*self._events, *heard))
        self._lay_out(self._readings(snapshot, server), server)

    def _remember(self, snapshot: Snapshot, server: Server) -> None:
        if not isinstance(server.metrics, Missing):
            self._histories["server"].append(server.metrics.at, server_figures(server.metrics))
        held = [gpu_figures(gpu) for gpu in snapshot.box.gpus if gpu.uuid in server.gpus]
        if held:
            self._histories["gpus"].append(snapshot.box.at, merged_figures(held, len(server.gpus)))
        self._histories["host"].append(snapshot.box.at, host_figures(snapshot.box.host))

    def _readings(self, snapshot: Snapshot, server: Server) -> tuple[Reading, ...]:
        """Return what each chart says; an engine that has never told a figure has no charts of its own."""
        held = [gpu for gpu in snapshot.box.gpus if gpu.uuid in server.gpus]
        machine = read_gpus(held) if held else read_host(snapshot.box.host)
        past = self._histories["server"]
        told = not isinstance(server.metrics, Missing) or any(
            past.knows(chart.series) for metric in METRICS for chart in metric.charts
        )
        return (*(metric.reading(server.metrics) for metric in METRICS if told), *machine)

    def _lay_out(self, readings: Sequence[Reading], server: Server) -> None:
        """Give each figure a chart, column by column, or the chosen one all the room; all on one time axis."""
        self._keys = tuple(reading.key for reading in readings)
        if self._chosen not in self._keys:
            self._chosen = self._keys[0]
        if self._is_large:
            readings = [reading for reading in readings if reading.key == self._chosen]
        box = self.query_one("#charts", VerticalScroll)
        width, height = box.container_size.width or self.app.size.width, box.size.height
        room = width - 2 - 1
        most = max(1, min(MOST_COLUMNS, (room + GAP) // TILE_CELLS))
        rows = ceil(len(readings) / most)
        columns = ceil(len(readings) / rows)
        lines = max(TILE_LINES[0], min(TILE_LINES[1], height // rows)) if len(readings) > 1 else max(3, height)
        tile = (room - GAP * (columns - 1)) // columns
        charts = list(box.query(MetricChart))
        if len(charts) != rows * columns:
            for chart in charts[rows * columns :]:
                chart.remove()
            new = [MetricChart() for _ in range(rows * columns - len(charts))]
            if new:
                box.mount_all(new)
            charts = charts[: rows * columns] + new
        box.styles.grid_size_columns = columns
        box.styles.grid_columns = str(tile)
        box.styles.grid_rows = str(lines)
        now = self.gpubox.now()
        self._axis = axis = TimeAxis(now, WINDOWS_S[self._window], max(1, tile - GUTTER))
        cursor = None if self._cursor_at is None else axis.cell_of(self._cursor_at)
        if cursor is None:
            self._cursor_at = None
        marks = placed(self._marks, axis)
        summed = self._summed
        for place, chart in enumerate(charts):
            row, column = divmod(place, columns)
            which = column * rows + row
            if which >= len(readings):
                chart.show(None)
                continue
            one = readings[which]
            chosen = one.key == self._chosen
            chart.show(drawn(one, self._histories[one.source], axis, tuple(marks), cursor, chosen=chosen))
            if chosen and rows * lines > height:
                chart.scroll_visible(animate=False)
            if self._summed - summed > MOST_AT_ONCE:
                # A window's first drawing sums up an hour for each figure: the other charts follow, a turn later each.
                self.call_later(self._changed)
                break
        starts = [column * (tile + GAP) for column in range(columns)]
        colours = palette(self.app)
        self.query_one("#times", Static).update(times_line(axis, marks, cursor, starts, colours))
        at = (
            ""
            if cursor is None
            else f"{clock_time(axis.middle_of(cursor))}, {duration(now - axis.middle_of(cursor))} ago"
        )
        happened = "" if cursor is None else told_at(self._marks, axis, cursor)
        window = f"last {WINDOWS_S[self._window] / 60:.0f} min"
        told = " · ".join(part for part in (happened, f"at {at}" if at else window) if part)
        mode, help_ = next_mode(server)
        helps = f" · {self.key_of(mode)} {help_}" if mode else ""
        self.query_one("#head", Static).update(head(server, told, helps, now, self.app.size.width - 2, colours))
        self.refresh_bindings()

    @property
    def _summed(self) -> int:
        return sum(history.summed for history in self._histories.values())

    @work(group="histories", exclusive=True)
    async def _read_histories(self, server: Server) -> None:
        """Ask the keeper for the last hour and what happened in it; without it the charts begin now."""
        histories, link = self._histories, self.gpubox.link
        events: tuple[Event, ...] = ()
        with suppress(GpuboxError):
            histories["server"].take(await link.server_series(server.name))
        with suppress(GpuboxError):
            parts = [await link.gpu_series(uuid) for uuid in server.gpus]
            histories["gpus"].take(await asyncio.to_thread(high_and_low, parts))
        with suppress(GpuboxError):
            events = await link.history()
        if histories is self._histories:
            self._events = events
            self._changed()

    def explained(self) -> tuple[str, ...]:
        """Name the figures of the charts, the chosen one first."""
        shown = (self._chosen, *(key for key in self._keys if key != self._chosen)) if self._keys else ()
        figures = tuple(key for one in shown for key in ((one, "waiting") if one == "running" else (one,)))
        return (*figures, *MEMORY) if self.query_one(MetricMemory).display and figures else figures

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what does something: a cursor can be moved where it is, a mark be gone to where there is one."""
        if action in ("window", "large", "chart"):
            return bool(self._keys) and (action != "chart" or len(self._keys) > 1)
        if action == "cursor":
            return bool(self._keys) and self._moved(int(str(parameters[0]))) is not None
        if action == "mark":
            return bool(self._keys) and self._mark_from(int(str(parameters[0]))) is not None
        if action == "gpu":
            memory = self.query_one(MetricMemory)
            return memory.display and memory.has_several
        if action == "back":
            return self._is_large or self._cursor_at is not None
        return super().check_action(action, parameters)

    def _moved(self, step: int) -> int | None:
        """Return the column beside the cursor; without a cursor one begins at the newest."""
        cursor = None if self._cursor_at is None else self._axis.cell_of(self._cursor_at)
        if cursor is None:
            return self._axis.cells - 1 if step < 0 else None
        return cursor + step if 0 <= cursor + step < self._axis.cells else None

    def _mark_from(self, step: int) -> int | None:
        cursor = None if self._cursor_at is None else self._axis.cell_of(self._cursor_at)
        return mark_cell(self._marks, self._axis, self._axis.cells if cursor is None else cursor, step)

    def action_window(self) -> None:
        """Show more of the past, or less."""
        self._window = (self._window + 1) % len(WINDOWS_S)
        self._changed()

    def action_large(self) -> None:
        """Show the chosen chart alone, or all."""
        self._is_large = not self._is_large
        self._changed()
        self.call_after_refresh(self._changed)

    def action_cursor(self, step: int) -> None:
        """Move the cursor by a column."""
        self._point(self._moved(step))

    def action_mark(self, step: int) -> None:
        """Move the cursor to the next thing that happened."""
        self._point(self._mark_from(step))

    def _point(self, cell: int | None) -> None:
        if cell is not None:
            self._cursor_at = self._axis.middle_of(cell)
            self._changed()

    def action_chart(self, step: int) -> None:
        """Choose the next chart, or the one before."""
        self._chosen = self._keys[(self._keys.index(self._chosen) + step) % len(self._keys)]
        self._changed()

    def action_gpu(self) -> None:
        """Show the memory of the server's next GPU."""
        self.query_one(MetricMemory).step()
        self._changed()

    def action_back(self) -> None:
        """Leave the cursor, then the large chart."""
        if self._cursor_at is not None:
            self._cursor_at = None
        else:
            self._is_large = False
        self._changed()

    @on(MetricChart.Chosen)
    def _clicked(self, clicked: MetricChart.Chosen) -> None:
        self._chosen = clicked.key
        self._cursor_at = None if clicked.cell is None else self._axis.middle_of(clicked.cell)
        self._changed()


def head(server: Server, window: str, helps: str, now: float, width: int, colours: Palette) -> Text:
    """Say whose figures these are, or why there are none and which key `helps`, and which moments are shown."""
    sign, _ = STATES[server.state]
    said = f"{sign} {describe(server)} {duration(now - server.state_since)}"
    text = Text.assemble(
        (server.name, f"bold {colours.text}"), (f"  {said}", colours.state(server.state)), no_wrap=True
    )
    room = width - text.cell_len - len(window) - 4
    if isinstance(server.metrics, Missing):
        why = f"no figures: {server.metrics.reason}{helps}"
        text.append(f"  {fit(why, max(0, room))}", colours.warn)
    else:
        requests = server.metrics.requests_total
        parts = [] if isinstance(requests, Missing) else [counted(requests, "request")]
        told = " · ".join([*parts, f"{server.engine} {server.engine_version or ''}"])
        text.append(f"  {fit(told, max(0, room))}", colours.dim)
    return text.append(" " * max(1, width - text.cell_len - len(window))).append(window, colours.dim)


def next_mode(server: Server) -> tuple[str, str]:
    """Return the id of the key that helps a server that tells no figures, and what it does; '' where none does."""
    if server.state in (ServerState.STOPPED, ServerState.FAILED, ServerState.LOST):
        return "mode.servers", "starts it again"
    if server.state in (ServerState.STARTING, ServerState.QUEUED, ServerState.BACKOFF):
        return "mode.logs", "shows its log"
    return "", ""
