"""All about one GPU: its processes, what could not be read and why, and its last minutes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll

from backends.snapshots import Gpu, GpuProcess, Missing, Series, Server, Snapshot
from tui.format import NOTHING, fit, memory, percent, shown
from tui.owners import owner_text
from tui.sleeping import slot_parts
from tui.themes import MEMORY_LEVELS, STATES, Palette, palette
from tui.widgets.bars import faded, history
from tui.widgets.gpu_balance import Balance, balance_text
from tui.widgets.gpu_health import all_well, health_lines
from tui.widgets.gpu_table import memory_ratio
from tui.widgets.live_text import LiveText, entitle
from tui.widgets.share_bar import owner_colour, share_lines

READINGS = (
    ("memory_used_bytes", "memory used"),
    ("memory_total_bytes", "memory total"),
    ("utilization", "utilization"),
    ("temperature_c", "temperature"),
    ("power_w", "power"),
    ("power_limit_w", "power limit"),
    ("processes", "processes"),
    ("ecc", "ECC errors"),
    ("throttling", "throttling"),
    ("xids", "XIDs"),
)
HEALTH = ("ecc", "throttling", "xids")
WITH_UUID = 100
TIGHT = 5
"""Below so many lines the processes go without their heading."""
TWO_ROWS = 14
"""Lines from which all four charts are drawn."""

CHART_ROWS = 4
"""Lines from which a chart has more than one line."""

SECONDS_UNTIL_S = 90.0
"""Below that a history's length is told in seconds."""

LEISURE = 12
"""Lines from which it is also said what is in order."""


class GpuDetails(VerticalScroll):
    """The GPU under the cursor."""

    DEFAULT_CSS = """
    GpuDetails { scrollbar-size-vertical: 0; }
    GpuDetails Static { height: auto; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__(classes="panel", can_focus=False)
        self.uuid: str | None = None
        self._series: Series | None = None
        self._snapshot: Snapshot | None = None
        self._balances: Sequence[Balance] = ()

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield LiveText(id="gpu-facts")
        yield LiveText(id="gpu-history")

    def follow(self, snapshot: Snapshot, uuid: str | None, balances: Sequence[Balance] = ()) -> None:
        """Show the newest readings of `uuid`, and how even the work of its servers is."""
        gpu = next((g for g in snapshot.box.gpus if g.uuid == uuid), None)
        if uuid != self.uuid:
            self.uuid, self._series = uuid, None
            self.scroll_home(animate=False)
        self._snapshot, self._balances = snapshot, balances
        if gpu is None:
            return
        colours, width = palette(self.app), max(20, self.size.width)
        servers = {server.name: server for server in snapshot.servers}
        slot = slot_line(gpu.uuid, snapshot.servers, colours)
        more = (
            ([slot] if slot is not None else [])
            + [balance_text(balance, colours) for balance in balances]
            + health_lines(gpu, snapshot.box.at, colours)
        )
        if self.size.height >= LEISURE and (well := all_well(gpu, colours)) is not None:
            more.append(well)
        facts = gpu_facts(gpu, servers, width, colours, more=more, tight=self.size.height < TIGHT)
        self.query_one("#gpu-facts", LiveText).show(facts)
        hidden = facts.plain.count("\n") + 1 - self.size.height
        rest = f" · {hidden} more: {self._down}" if hidden > 0 else f" · {gpu.uuid}" if width >= WITH_UUID else ""
        entitle(self, f"GPU {gpu.index} · {gpu.name}{rest}")
        self._draw(gpu, width, facts.plain.count("\n") + 1, colours)

    @property
    def _down(self) -> str:
        # Not above: the first picture needs no catalogue of keys.
        from tui.keymap import key_of

        return key_of(self.app, "details.down")

    def on_resize(self) -> None:
        """Draw anew for the room there is now."""
        if self._snapshot is not None:
            self.follow(self._snapshot, self.uuid, self._balances)

    @property
    def lacks_history(self) -> bool:
        """Whether the history of the GPU that is shown has not been read yet."""
        return self.uuid is not None and self._series is None

    def take(self, uuid: str, series: Series) -> None:
        """Keep the history of `uuid` for the next drawing, if it is still the one that is shown."""
        if uuid == self.uuid:
            self._series = series

    def _draw(self, gpu: Gpu, width: int, above: int, colours: Palette) -> None:
        part = self.query_one("#gpu-history", LiveText)
        room = self.size.height - above
        part.display = self._series is not None and len(self._series.at) > 1 and room >= 1
        if part.display and self._series is not None:
            draw = gpu_history if room >= CHART_ROWS else gpu_history_line
            part.show(draw(self._series, gpu, width, room, colours))


def slot_line(uuid: str, servers: Sequence[Server], colours: Palette) -> Text | None:
    """Say who is awake on a GPU and who sleeps there; None where nobody there can sleep."""
    parts = slot_parts(uuid, servers)
    if not parts:
        return None
    text = Text("slot  ", style=colours.dim)
    for place, (server, words) in enumerate(parts):
        colour = colours.state(server.state)
        text.append(" · " if place else "", colours.dim).append(f"{STATES[server.state][0]} ", colour)
        text.append(server.name, f"bold {colours.text}").append(f" {words}", colour)
    return text


def gpu_facts(
    gpu: Gpu,
    servers: Mapping[str, Server],
    width: int,
    colours: Palette,
    *,
    more: Sequence[Text] = (),
    tight: bool,
) -> Text:
    """Say whose the GPU and each part of its memory is, `more`, what runs on it, and what could not be read."""
    lines = [_summary(gpu, servers, colours), *(() if tight else more)]
    if gpu.refusal is not None:
        lines.append(Text(f"⊘ cannot be assigned: {gpu.refusal}", style=colours.warn))
    if not tight:
        lines += share_lines(gpu, width, colours)
    if isinstance(gpu.processes, Missing):
        lines.append(Text(f"processes {NOTHING} {gpu.processes.reason}", style=colours.dim))
    elif gpu.processes:
        if not tight:
            lines.append(_process_heading(width, colours))
        for process in gpu.processes:
            lines.append(_process_line(process, width, colours))
            if process.note:
                lines.append(Text(f"{'':>8}  {process.note}", style=colours.warn))
    else:
        lines.append(Text("no processes", style=colours.dim))
    if tight:
        lines += more
    for name, title in READINGS:
        reading = getattr(gpu, name)
        if isinstance(reading, Missing) and name != "processes" and not (name in HEALTH and gpu.refusal):
            lines.append(Text(f"{title} {NOTHING} {reading.reason}", style=colours.dim))
    return Text("\n", no_wrap=True).join(lines)


def _summary(gpu: Gpu, servers: Mapping[str, Server], colours: Palette) -> Text:
    text = Text("held by " if gpu.grants else "held by no server", style=colours.dim)
    for place, grant in enumerate(gpu.grants):
        server = servers.get(grant.server) if grant.ours else None
        text.append(", " if place else "", colours.dim).append(grant.server, f"bold {colours.text}")
        if not grant.ours:
            text.append(f" of {grant.user}", colours.warn)
        if server is not None:
            text.append(f" ({server.state.value})", colours.state(server.state))
        if grant.memory_bytes is not None:
            text.append(f" {memory(grant.memory_bytes)}", colours.text)
    text.append(f" · {shown(gpu.memory_free_bytes, memory)} free", colours.text)
    ratio = memory_ratio(gpu)
    text.append(f" · {shown(ratio, percent)} used", colours.level(ratio, MEMORY_LEVELS))
    return text


def _process_heading(width: int, colours: Palette) -> Text:
    return Text(f"{'pid':>8}  {'user':<10}  {'MiB':>8}  {'whose':<18}  command"[:width], style=colours.dim)


def _process_line(process: GpuProcess, width: int, colours: Palette) -> Text:
    held = shown(process.memory_bytes, lambda b: f"{b / (1 << 20):,.0f}")
    command = fit(process.command, max(6, width - 8 - 10 - 8 - 18 - 8))
    return Text.assemble(
        (f"{process.pid:>8}  {fit(process.user, 10):<10}  {held:>8}  ", colours.text),
        (f"{fit(owner_text(process), 18):<18}  ", owner_colour(process.owner, colours)),
        (command, colours.text),
    )


def gpu_history_line(series: Series, gpu: Gpu, width: int, height: int, colours: Palette) -> Text:
    """Draw utilization and memory in one line, newest on the right; `height` is at least that."""
    top = 1.0 if isinstance(gpu.memory_total_bytes, Missing) else float(gpu.memory_total_bytes)
    half = (width - 3) // 2
    parts = [
        Text.assemble((f"{title} ", colours.dim), (history(values, half - len(title) - 1, 1, most)[0], colour))
        for title, values, most, colour in (
            ("utilization", series.points.get("utilization", ()), 1.0, colours.primary),
            ("memory", series.points.get("memory_used_bytes", ()), top, colours.secondary),
        )
    ]
    return Text("   ", no_wrap=True).join(parts)


def gpu_history(series: Series, gpu: Gpu, width: int, height: int, colours: Palette) -> Text:
    """Draw utilization and memory, and with enough room power and temperature, newest on the right."""
    limits = (gpu.memory_total_bytes, gpu.power_limit_w)
    memory_top, power_top = (1.0 if isinstance(one, Missing) else float(one) for one in limits)
    charts: list[tuple[str, str, float, Callable[[float], str], str]] = [
        ("utilization", "utilization", 1.0, percent, colours.primary),
        ("memory_used_bytes", "memory", memory_top, memory, colours.secondary),
        ("power_w", "power", power_top, "{:.0f} W".format, colours.accent),
        ("temperature_c", "temperature", 100.0, "{:.0f} °C".format, colours.warn),
    ]
    if height < TWO_ROWS:
        charts = charts[:2]
    rows = min(14, height // (len(charts) // 2) - 2)
    half = (width - 3) // 2
    span_s = series.at[-1] - series.at[0]
    span = f"last {span_s:.0f} s" if span_s < SECONDS_UNTIL_S else f"last {span_s / 60:.0f} min"
    lines: list[Text] = []
    for pair in (charts[:2], charts[2:]) if len(charts) > 2 else (charts,):
        drawn = []
        for name, title, top, how, colour in pair:
            values = series.points.get(name, ())
            known = [v for v in values if v is not None]
            peak = f"peak {how(max(known))}" if known else NOTHING
            heading = Text.assemble((title, f"bold {colour}"), (f"  {peak}, {span}", colours.dim))
            chart = history(values, half, rows, top)
            shades = [faded(colour, colours.background, row, rows) for row in range(rows)]
            drawn.append([heading, *(Text(line, style=shade) for line, shade in zip(chart, shades, strict=True))])
        lines.append(Text())
        for left, right in zip(*drawn, strict=True):
            left.pad_right(half + 3 - left.cell_len)
            lines.append(Text.assemble(left, right))
    return Text("\n", no_wrap=True).join(lines)
