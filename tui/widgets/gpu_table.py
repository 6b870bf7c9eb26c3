"""One row for each GPU: its memory, its work, and whose it is."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from backends.snapshots import Gpu, Missing, Owner, Server, ServerState, Snapshot
from tui.format import NOTHING, fit, gib, percent, short_gpu_name, shown
from tui.owners import SIGNS
from tui.themes import MEMORY_LEVELS, STATES, UTILIZATION_LEVELS, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.gpu_health import health_signs, health_words
from tui.widgets.live_table import GAP, Column, LiveTable
from tui.widgets.share_bar import share_bar

WIDE = 110
WITH_PROCESSES = 150
HEALTH = 18


@dataclass(frozen=True, slots=True)
class GpuLayout:
    """Widths of what stretches in a row; a column of width 0 is left out."""

    name: int
    memory_bar: int
    utilization_bar: int
    owner: int
    processes: int
    health: int


def layout(width: int, names: list[str], *, faulty: bool) -> GpuLayout:
    """Share `width` out. What is left out first: the processes, then a name that all GPUs have.

    With little room, health is told in signs, and only where one of the GPUs is `faulty`.
    """
    health = HEALTH if width >= WIDE else 2 if faulty else 0
    longest = max((len(n) for n in names), default=4)
    name = longest if width >= WIDE else 0 if len(set(names)) == 1 else min(longest, 9)
    room = width - (2 + 12 + 5 + 4 + 7 + 5 * GAP) - (name + GAP if name else 0) - (health + GAP if health else 0)
    owner = min(30, max(14, room // 3 if width >= WIDE else room // 2 - 1))
    processes = (room - owner) // 3 if width >= WITH_PROCESSES else 0
    bars = max(0, room - owner - (processes + GAP if processes else 0))
    memory_bar = bars * 6 // 10
    return GpuLayout(name, memory_bar, bars - memory_bar, owner, processes, health)


class GpuTable(LiveTable):
    """All GPUs of the box."""

    def follow(self, snapshot: Snapshot, width: int) -> None:
        """Show the newest readings in `width` cells."""
        colours, gpus = palette(self.app), snapshot.box.gpus
        at = snapshot.box.at
        health = {gpu.uuid: health_signs(gpu, at, colours) for gpu in gpus}
        faulty = any(signs.plain for signs in health.values())
        sizes = layout(width, [short_gpu_name(gpu.name) for gpu in gpus], faulty=faulty)
        if sizes.health == HEALTH:
            health = {gpu.uuid: health_words(gpu, at, colours) for gpu in gpus}
        columns = (
            Column("#", 2, "right"),
            Column("GPU", sizes.name),
            Column("Memory, GiB", sizes.memory_bar + 12),
            Column("Utilization" if sizes.utilization_bar > 5 else "Util", sizes.utilization_bar + 5),
            Column("°C", 4, "right"),
            Column("Watt", 7, "right"),
            Column("Health" if sizes.health == HEALTH else "!", sizes.health),
            Column("Held by", sizes.owner),
            Column("Processes", sizes.processes),
        )
        servers = {server.name: server for server in snapshot.servers}
        rows = {gpu.uuid: self._row(gpu, servers, health[gpu.uuid], sizes, colours) for gpu in gpus}
        kept = [number for number, column in enumerate(columns) if column.width]
        self.show([columns[n] for n in kept], {key: [row[n] for n in kept] for key, row in rows.items()})

    def _row(
        self, gpu: Gpu, servers: dict[str, Server], health: Text, sizes: GpuLayout, colours: Palette
    ) -> tuple[Text | str, ...]:
        ratio = memory_ratio(gpu)
        colour = colours.level(ratio, MEMORY_LEVELS)
        used, total = shown(gpu.memory_used_bytes, gib), shown(gpu.memory_total_bytes, gib)
        busy = colours.level(gpu.utilization, UTILIZATION_LEVELS)
        return (
            Text(str(gpu.index), style=f"bold {colours.text}"),
            Text(short_gpu_name(gpu.name), style=colours.text),
            Text.assemble(
                share_bar(gpu, sizes.memory_bar, colours),
                (f"{used:>6}", colour),
                (f"/{total:<5}", colours.dim),
            ),
            Text.assemble(
                bar(gpu.utilization, sizes.utilization_bar, busy, colours.faint),
                (f"{shown(gpu.utilization, percent):>5}", busy),
            ),
            Text(shown(gpu.temperature_c, lambda c: f"{c}"), style=colours.text),
            Text.assemble(
                (shown(gpu.power_w, lambda w: f"{w:.0f}"), colours.text),
                (f"/{shown(gpu.power_limit_w, lambda w: f'{w:.0f}'):<3}", colours.dim),
            ),
            health,
            owner(gpu, servers, sizes.owner, colours),
            Text(fit(_processes(gpu), sizes.processes), style=colours.dim),
        )


def memory_ratio(gpu: Gpu) -> float | Missing:
    """Return used/total, 0–1."""
    if isinstance(gpu.memory_used_bytes, Missing):
        return gpu.memory_used_bytes
    if isinstance(gpu.memory_total_bytes, Missing):
        return gpu.memory_total_bytes
    return gpu.memory_used_bytes / max(1, gpu.memory_total_bytes)


def owner(gpu: Gpu, servers: dict[str, Server], width: int, colours: Palette) -> Text:
    """Say in `width` cells whose the GPU is: a server's, nobody's to assign, somebody else's, or free."""
    if gpu.holder is not None:
        return _holders(gpu, servers, width, colours)
    if gpu.refusal is not None:
        return Text(fit(f"⊘ {gpu.refusal}", width), style=colours.warn)
    if isinstance(gpu.processes, Missing):
        return Text(NOTHING, style=colours.dim)
    left_by = list(dict.fromkeys(p.server or NOTHING for p in gpu.processes if p.owner is Owner.ORPHAN))
    if left_by:
        sign = SIGNS[Owner.ORPHAN]
        return Text(fit(f"{sign} left by {', '.join(left_by)}", width), style=colours.bad)
    strangers = list(dict.fromkeys(p.user for p in gpu.processes if not p.is_ours))
    if strangers:
        return Text(fit(f"▲ {', '.join(strangers)}", width), style=colours.warn)
    return Text("free", style=colours.dim)


def _holders(gpu: Gpu, servers: dict[str, Server], width: int, colours: Palette) -> Text:
    """Name who has the GPU, each with the sign of its state: who is awake first, then who sleeps there."""
    text = Text()
    asleep = {grant.server: _sleeps(servers.get(grant.server) if grant.ours else None) for grant in gpu.grants}
    for grant in sorted(gpu.grants, key=lambda one: asleep[one.server]):
        server = servers.get(grant.server) if grant.ours else None
        sign, colour = (STATES[server.state][0], colours.state(server.state)) if server else ("●", colours.dim)
        name = grant.server if grant.ours else f"{grant.server} of {grant.user}"
        text.append("  " if text.plain else "").append(f"{sign} ", colour)
        text.append(name, colours.dim if asleep[grant.server] else colours.text)
    text.truncate(width, overflow="ellipsis")
    return text


def _sleeps(server: Server | None) -> bool:
    return server is not None and server.state is ServerState.SLEEPING


def _processes(gpu: Gpu) -> str:
    if isinstance(gpu.processes, Missing):
        return NOTHING
    return ", ".join(f"{process.command} ({process.pid})" for process in gpu.processes)
