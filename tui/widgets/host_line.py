"""The host in one or two lines: CPU and memory, and what kind of box this is."""

from __future__ import annotations

from rich.text import Text

from backends.snapshots import Box, Host
from tui.format import gpu_kinds, memory, percent, shown
from tui.themes import MEMORY_LEVELS, UTILIZATION_LEVELS, Palette
from tui.widgets.bars import bar


def box_line(box: Box, width: int, colours: Palette) -> Text:
    """Say in `width` cells what the box has: '8 × H200 · driver 580 · CUDA 13.0', and how much of it is free."""
    parts = [gpu_kinds(box.gpus)]
    if box.driver_version:
        parts.append(f"driver {box.driver_version}")
    if box.cuda_version:
        parts.append(f"CUDA {box.cuda_version}")
    # Not the total less what is used: the driver keeps some of each GPU for itself.
    free = [gpu.memory_free_bytes for gpu in box.gpus if isinstance(gpu.memory_free_bytes, int)]
    total = [gpu.memory_total_bytes for gpu in box.gpus if isinstance(gpu.memory_total_bytes, int)]
    text = Text.assemble((parts[0], f"bold {colours.text}"), (" · ".join(["", *parts[1:]]), colours.dim), no_wrap=True)
    if free and len(free) == len(total):
        right = Text(f"{memory(sum(free))} free of {memory(sum(total))}", style=colours.dim)
        if text.cell_len + right.cell_len + 2 > width:
            text.truncate(width - right.cell_len - 2, overflow="ellipsis")
        text.append(" " * (width - text.cell_len - right.cell_len)).append_text(right)
    return text


def host_line(host: Host, width: int, colours: Palette) -> Text:
    """Show the CPU's load and the host's memory, each a bar and its figures, in `width` cells."""
    used = host.memory_total_bytes - host.memory_available_bytes
    ratio = used / max(1, host.memory_total_bytes)
    load = shown(host.load_1m, "{:.1f}".format)
    cpu = f" {shown(host.cpu_utilization, percent)} of {host.cpu_count} cores, load {load}"
    ram = f" {memory(used)} of {memory(host.memory_total_bytes)}"
    room = width - len("CPU ") - len(cpu) - len("  Memory ") - len(ram)
    length = max(4, min(40, room // 2))
    busy, held = colours.level(host.cpu_utilization, UTILIZATION_LEVELS), colours.level(ratio, MEMORY_LEVELS)
    gap = max(2, width - len("CPU Memory ") - len(cpu) - len(ram) - 2 * length)
    return Text.assemble(
        ("CPU ", colours.dim),
        bar(host.cpu_utilization, length, busy, colours.faint),
        (cpu, colours.text),
        " " * gap,
        ("Memory ", colours.dim),
        bar(ratio, length, held, colours.faint),
        (ram, colours.text),
        no_wrap=True,
    )
