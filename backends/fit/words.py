"""An estimate's arithmetic in lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.fit.layout import Layout
from backends.snapshots import Missing

if TYPE_CHECKING:
    from backends.fit.asleep import Asleep
    from backends.fit.estimate import Case, Sums


def gib(amount_bytes: float) -> str:
    """Show bytes as '42.3 GiB', small ones as '512 MiB' or '3.5 KiB'."""
    for unit, size, limit in (("KiB", 1 << 10, 1 << 20), ("MiB", 1 << 20, 1000 << 20)):
        if abs(amount_bytes) < limit:
            amount = amount_bytes / size
            return f"{amount:.3g} {unit}" if abs(amount) < 100 else f"{amount:.0f} {unit}"
    return f"{amount_bytes / (1 << 30):.1f} GiB"


def arithmetic(case: Case, sums: Sums, needed: int | Missing, cost: Asleep | None) -> tuple[str, ...]:
    """Return how the figures come about, a step a line; the last is what it costs asleep, where it sleeps."""
    from backends.fit.asleep import told

    settings, room, overhead = case.settings, case.room, sums.overhead
    source = "as its last start logged" if overhead.learned else "reckoned; its first start will tell"
    each = "" if room.count < 2 else " on each GPU"
    lines = []
    shares = isinstance(room.usable_bytes, int) and settings.space_bytes is None and settings.engine == "vllm"
    less = "−" if shares else ""
    if shares and isinstance(room.usable_bytes, int):
        share = settings.utilization * room.usable_bytes
        note = f"its share: {gib(room.usable_bytes)} × gpu_memory_utilization {settings.utilization:g}"
        lines.append(_line(gib(share), note))
    if isinstance(sums.weights, Missing):
        lines.append(_line("?", f"weights: {sums.weights.reason}", less))
    else:
        lines.append(_line(gib(sums.weights), f"weights{each}{_weights_note(case)}", less))
    if overhead.activation_bytes:
        lines.append(_line(gib(overhead.activation_bytes), f"peak activation ({source})", less))
    if overhead.non_torch_bytes:
        what = "other memory" if room.count else "the process itself"
        lines.append(_line(gib(overhead.non_torch_bytes), f"{what} ({source})", less))
    lines += _cache_lines(case, sums, each, "=" if shares else "")
    if beside := overhead.graphs_bytes + overhead.context_bytes + overhead.peers_bytes:
        parts = [f"CUDA graphs {gib(overhead.graphs_bytes)}"] if overhead.graphs_bytes else []
        parts += ["CUDA itself", *(["exchange between GPUs (reckoned)"] if overhead.peers_bytes else [])]
        lines.append(_line(gib(beside), f"{' and '.join(parts)}, beside its share"))
    if isinstance(needed, int) and room.count:
        free = f", {gib(room.free_bytes)} can be had" if isinstance(room.free_bytes, int) else ""
        lines.append(_line(gib(needed), f"in all{each}{free}"))
    if cost is not None:
        lines.append(_line(*told(cost, room.count)))
    return tuple(lines)


def _line(amount: str, what: str, sign: str = "") -> str:
    return f"{sign:1} {amount:>10}  {what}"


def _cache_lines(case: Case, sums: Sums, each: str, equals: str) -> list[str]:
    lines, settings = [], case.settings
    layout, kv = sums.layout, sums.kv
    if isinstance(layout, Layout) and not layout.layers:
        return [_line("no", "KV cache: an encoder keeps nothing")]
    if isinstance(kv, int):
        why = " (as set)" if settings.space_bytes is not None else ""
        if settings.blocks and isinstance(layout, Layout):
            why, equals = f" ({settings.blocks} blocks, as set)", ""
        lines.append(_line(gib(kv), f"KV cache{each}{why}", equals))
    if isinstance(layout, Missing):
        lines.append(_line("?", f"a token's KV cache: {layout.reason}"))
    else:
        lines.append(_line(gib(layout.bytes_per_token), f"of KV cache a token{each}: {_kinds(layout)}"))
    if isinstance(sums.tokens, int):
        lines.append(_line(f"{sums.tokens:,}", f"tokens in the KV cache{_logged(case)}"))
    if isinstance(sums.longest, int):
        lines.append(_line(f"{sums.longest:,}", f"tokens is the longest context that fits{_limit(sums)}"))
    if isinstance(sums.concurrency, float) and isinstance(sums.length, int):
        lines.append(_line(f"{sums.concurrency:,.1f}", f"conversations of {sums.length:,} tokens at once"))
    return lines


def _logged(case: Case) -> str:
    return ", as its last start logged" if case.learned and case.learned.kv_tokens else ""


def _limit(sums: Sums) -> str:
    return f" (asked for: {sums.length:,})" if isinstance(sums.length, int) else ""


def _weights_note(case: Case) -> str:
    from backends.fit.checkpoint import Checkpoint

    notes = []
    if case.learned and case.learned.weights_bytes:
        return " (as its last start logged)"
    if isinstance(case.checkpoint, Checkpoint):
        notes.append(f"{case.checkpoint.files} file{'' if case.checkpoint.files == 1 else 's'}")
    if case.settings.online_bits:
        notes.append(f"quantized to {case.settings.online_bits:g} bits at load")
    elif case.settings.quantization and not case.config.get("quantization_config"):
        notes.append(f"as stored: what {case.settings.quantization} makes of them is not known")
    if case.settings.offload_bytes:
        notes.append(f"{gib(case.settings.offload_bytes)} stay in host memory")
    return f" ({', '.join(notes)})" if notes else ""


def _kinds(layout: Layout) -> str:
    parts = []
    for one in layout.layers:
        what = {"full": "layers", "window": f"layers with a window of {one.window:,}", "state": "layers with a state"}
        size = gib(one.state_bytes if one.kind == "state" else one.token_bytes)
        parts.append(f"{one.count} {what[one.kind]} × {size}" + (" in all" if one.kind == "state" else ""))
    return " + ".join(parts)
