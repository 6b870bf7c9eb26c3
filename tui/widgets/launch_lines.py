"""Lines of the launch sheet: what was chosen, what stands against a GPU, and what sleep costs."""

from __future__ import annotations

from rich.text import Text

from backends.fit.asleep import HOST_PER_WEIGHT, LEFT_BYTES
from backends.fit.estimate import Fit
from backends.snapshots import Gpu, GpuProcess, Host, Missing, Owner
from tui.format import indices, memory
from tui.themes import Palette


def chosen_line(chosen: tuple[str, ...], needed: int, has_gpus: bool, colours: Palette) -> Text:
    """Say what the server will run on, and what is odd about it."""
    if chosen == ("cpu",):
        why = "" if has_gpus else ": this box has no GPU"
        return Text(f"on the CPU{why}", style=f"bold {colours.accent}")
    if chosen == ("auto",):
        which = "freest GPU" if needed <= 1 else f"{needed} freest GPUs"
        return Text(f"auto: gpubox takes the {which}", style=f"bold {colours.accent}")
    text = Text(f"GPU {indices(int(index) for index in chosen)}", style=f"bold {colours.accent}")
    if len(chosen) != needed:
        text.append(f"   the profile takes {needed}, {len(chosen)} ticked", colours.warn)
    return text


def sleep_line(
    fit: Fit | None,
    host: Host | None,
    keys: tuple[str, str],
    width: int,
    *,
    sleeps: bool,
    asleep: bool,
    colours: Palette,
) -> Text:
    """Say in `width` cells whether it can give way asleep, whether it starts so, and what that costs by the fit."""
    text = Text(_tick(sleeps), style=f"bold {colours.accent}" if sleeps else colours.text)
    text.append(" sleep", colours.text).append(f" ({keys[0]})", colours.dim)
    if sleeps:
        text.append(f" {_tick(asleep)}", f"bold {colours.accent}" if asleep else colours.text)
        text.append(" asleep", colours.text).append(f" ({keys[1]})", colours.dim)
    costs = ["2 × weights of the host"]
    colour = colours.dim
    if fit is not None and isinstance(fit.weights_bytes, int) and fit.gpu_count:
        known = fit.asleep.host_bytes if fit.asleep is not None else None
        pinned = known if isinstance(known, int) else HOST_PER_WEIGHT * fit.weights_bytes * fit.gpu_count
        costs = [f"{memory(pinned)} of the host", f", {memory(LEFT_BYTES)} a GPU"]
        if host is not None:
            costs.insert(1, f" ({memory(host.memory_available_bytes)} free)")
            colour = colours.dim if pinned < host.memory_available_bytes else colours.warn
    text.append("  ")
    for part in costs:
        if text.cell_len + len(part) <= width:
            text.append(part, colour)
    text.truncate(width, overflow="ellipsis")
    return text


def _tick(on: bool) -> str:
    return "[x]" if on else "[ ]"


def why_not(gpu: Gpu, *, share: bool = False) -> str | None:
    """Say why a GPU cannot be assigned, if so; to a profile that shares, one can be whose servers share, too."""
    if gpu.refusal is not None:
        return gpu.refusal
    if gpu.holder is None or (share and all(grant.memory_bytes is not None for grant in gpu.grants)):
        return None
    return f"held by {gpu.holder}"


def _named(process: GpuProcess) -> str:
    if process.owner is Owner.ORPHAN:
        return f"an orphan of {process.server}"
    return f"{process.command} of {process.user}"


def company(gpu: Gpu) -> str:
    """Say with whom a GPU would be shared; empty where with nobody."""
    if isinstance(gpu.processes, Missing):
        return gpu.processes.reason
    beside = [f"shared with {gpu.holder}"] if gpu.holder is not None else []
    beside += [_named(process) for process in gpu.processes if not process.is_ours]
    return "▲ " + ", ".join(beside) if beside else ""
