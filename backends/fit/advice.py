"""What to change, as little as possible, so that a profile fits; each change is reckoned before it is offered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backends.fit.checkpoint import Checkpoint
from backends.fit.estimate import Fit, Verdict, estimate, without_cache
from backends.fit.layout import model_context
from backends.fit.rooms import Room
from backends.fit.settings import Settings, read_settings
from backends.fit.words import gib
from backends.snapshots import Missing
from backends.starts import Remedy, StartFigures

if TYPE_CHECKING:
    from profiles.schema import Profile

MOST_UTILIZATION = 0.95
LEAST_CONTEXT = 512
"""A shorter context than this serves nobody."""
UNSURE_WEIGHTS, UNSURE_OVERHEAD = 0.01, 0.1
"""How far weights and overhead may be off where no start is on record."""
MORE_GPUS = (2, 4, 8, 16)


def with_advice(
    fit: Fit,
    profile: Profile,
    checkpoint: Checkpoint | Missing,
    rooms: Mapping[int, Room],
    learned: StartFigures | None,
    environ: Mapping[str, str],
    elsewhere: Room | None = None,
) -> Fit:
    """Return an estimate with the changes that make it fit, the smallest first; unchanged where it fits already.

    `rooms` has what could be had on each number of GPUs, the estimate's own among them; `elsewhere` are as many GPUs
    that would rather be chosen.
    """
    if fit.verdict is not Verdict.NO or isinstance(checkpoint, Missing):
        return fit
    settings, room = read_settings(profile, environ), rooms[fit.gpu_count]
    known = without_cache(learned)
    changes: list[Remedy] = []
    if elsewhere and elsewhere.indices != room.indices:
        then = estimate(profile, checkpoint, elsewhere, learned, environ)
        changes += [Remedy(f"on {elsewhere.where} instead: {then.why}", {})] if then.ok else []
    for text, args in _changes(fit, settings, room, checkpoint):
        if any(f"args.{key}" in change.set for key in args for change in changes):
            continue
        changed = with_args(profile, args)
        target = rooms.get(read_settings(changed, environ).gpus) if room.count else room
        if target is None:
            continue
        same_shape = not args.keys() & {"tensor_parallel_size", "quantization"}
        then = estimate(changed, checkpoint, target, known if same_shape else None, environ)
        if not then.ok:
            continue
        changes.append(Remedy(f"{text}: {then.why}", {f"args.{key}": value for key, value in args.items()}))
    return replace(fit, changes=tuple(changes))


def with_args(profile: Profile, args: Mapping[str, Any]) -> Profile:
    """Return a profile with engine arguments laid over its own; its number of GPUs follows."""
    from profiles.schema import parallel_size

    merged = {**profile.args, **args}
    gpus = profile.gpus if profile.gpus == "cpu" or profile.engine != "vllm" else parallel_size(merged)
    return profile.model_copy(update={"args": merged, "gpus": gpus})


def _changes(fit: Fit, settings: Settings, room: Room, checkpoint: Checkpoint) -> list[tuple[str, dict[str, Any]]]:
    """Return what might help, the least harm first."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if settings.engine == "vllm":
        changes += _utilization(fit, settings, room)
        changes += _context(fit, settings, model_context(checkpoint.text_config))
        if room.count and settings.kv_dtype_bytes is None:
            changes.append(("a KV cache in 8 bits", {"kv_cache_dtype": "fp8"}))
        if room.count:
            rest = settings.pipeline_parallel * settings.data_parallel
            changes += [
                (f"{size * rest} GPUs", {"tensor_parallel_size": size})
                for size in MORE_GPUS
                if size > settings.tensor_parallel
            ]
        if room.count and not settings.quantization and not checkpoint.config.get("quantization_config"):
            changes.append(("weights in 8 bits", {"quantization": "fp8"}))
    elif not settings.quantization:
        changes.append(("weights in 4 bits", {"quantization": "bnb-4bit"}))
    return changes


def _context(fit: Fit, settings: Settings, own: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the longest context to ask for instead; with some to spare where the figures are only reckoned."""
    longest, kv, weights = fit.longest_context, fit.kv_bytes, fit.weights_bytes
    if not isinstance(longest, int) or not isinstance(kv, int) or not isinstance(weights, int) or kv <= 0:
        return []
    if not fit.learned and settings.space_bytes is None and not settings.blocks:
        unsure = UNSURE_WEIGHTS * weights + UNSURE_OVERHEAD * (fit.activation_bytes + fit.non_torch_bytes)
        longest = math.floor(longest * max(0.0, 1 - unsure / kv))
    if isinstance(fit.max_model_len, int):
        longest = min(longest, fit.max_model_len - 1, own or longest)
    step = 1024 if longest >= 4096 else 256
    length = longest // step * step
    return [(f"a context of {length:,} tokens", {"max_model_len": length})] if length >= LEAST_CONTEXT else []


def _utilization(fit: Fit, settings: Settings, room: Room) -> list[tuple[str, dict[str, Any]]]:
    """Return the share of the GPU to ask for instead: what is free where others are there, else what it takes."""
    usable, free = room.usable_bytes, room.free_bytes
    if not room.count or settings.space_bytes is not None or isinstance(usable, Missing) or isinstance(free, Missing):
        return []
    most = min(MOST_UTILIZATION, math.floor((free - fit.graphs_bytes - fit.context_bytes) / usable * 100) / 100)
    if most <= 0 or most == settings.utilization:
        return []
    if most < settings.utilization:
        return [(f"what is free of the GPU ({gib(most * usable)})", {"gpu_memory_utilization": most})]
    shares = range(math.ceil(settings.utilization * 20 + 0.01), math.floor(most * 20 + 0.01) + 1)
    return [
        (f"a larger share of the GPU ({gib(share / 20 * usable)})", {"gpu_memory_utilization": share / 20})
        for share in shares
    ]
