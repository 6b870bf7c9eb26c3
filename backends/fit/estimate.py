"""Does a profile fit: what its server takes of each GPU, what that leaves for the KV cache, and what the cache holds.

The arithmetic is vLLM's own: the server's share of a GPU (`gpu_memory_utilization`) less weights, peak activation and
other memory is the KV cache; a start that is on record replaces what is reckoned by what its log told.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from backends.fit.asleep import Asleep, asleep
from backends.fit.checkpoint import Checkpoint, read_checkpoint
from backends.fit.layout import Layout, heads, model_context, read_layout
from backends.fit.overhead import Overhead, Step, cpu_overhead, gpu_overhead, step_of
from backends.fit.rooms import Room
from backends.fit.settings import Settings, read_settings
from backends.fit.weights import weights_bytes
from backends.snapshots import Missing
from backends.starts import Remedy, StartFigures

if TYPE_CHECKING:
    from profiles.schema import Profile

TIGHT_CONCURRENCY = 2.0
"""A server that can hold fewer conversations of full length than this is a tight fit."""
TIGHT_FREE_BYTES = 256 << 20
UNRECORDED_BYTES = 4 << 30
"""So much beyond what the log names may have been taken from the KV cache (newer vLLM takes an estimate of graphs)."""


class Verdict(StrEnum):
    """Whether a server would start and have room to work; `unknown` where that cannot be told."""

    FITS = "fits"
    TIGHT = "tight"
    NO = "does not fit"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a profile fits into some GPUs, or into the host; bytes are on each GPU, tokens the whole server's.

    `needed_bytes` is weights, KV cache and overhead together, of `usable_bytes` of which `free_bytes` are free.
    `longest_context` is what one conversation could have at most, `concurrency` how many of `max_model_len` tokens
    there could be at once. `learned` tells whether figures of an earlier start took part. The first of `changes` is the
    smallest. `asleep` is what it costs asleep, None where it does not sleep.
    """

    profile: str
    where: str
    gpu_count: int
    gpu_indices: tuple[int, ...]
    verdict: Verdict
    why: str
    usable_bytes: int | Missing
    free_bytes: int | Missing
    weights_bytes: int | Missing
    kv_bytes: int | Missing
    activation_bytes: int
    non_torch_bytes: int
    graphs_bytes: int
    context_bytes: int
    needed_bytes: int | Missing
    kv_bytes_per_token: int | Missing
    kv_tokens: int | Missing
    max_model_len: int | Missing
    longest_context: int | Missing
    concurrency: float | Missing
    learned: bool
    arithmetic: tuple[str, ...] = ()
    changes: tuple[Remedy, ...] = ()
    asleep: Asleep | None = None

    @property
    def overhead_bytes(self) -> int:
        """All that is neither weights nor KV cache."""
        return self.activation_bytes + self.non_torch_bytes + self.graphs_bytes + self.context_bytes

    @property
    def ok(self) -> bool:
        """Whether the server would start."""
        return self.verdict in (Verdict.FITS, Verdict.TIGHT)


@dataclass(frozen=True, slots=True)
class Case:
    """All that an estimate is made of; `checkpoint` may be Missing, `learned` is of a start with the same settings."""

    profile: Profile
    settings: Settings
    checkpoint: Checkpoint | Missing
    room: Room
    learned: StartFigures | None

    @property
    def config(self) -> Mapping[str, Any]:
        """The language model's configuration; empty where there is none."""
        return {} if isinstance(self.checkpoint, Missing) else self.checkpoint.text_config


@dataclass(frozen=True, slots=True)
class Sums:
    """The parts of an estimate, before they are judged."""

    overhead: Overhead
    weights: int | Missing
    kv: int | Missing
    layout: Layout | Missing
    length: int | Missing
    tokens: int | Missing
    longest: int | Missing
    concurrency: float | Missing


def estimate(
    profile: Profile,
    checkpoint: Checkpoint | Missing,
    room: Room,
    learned: StartFigures | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    held_bytes: int = 0,
) -> Fit:
    """Reckon how `profile` fits into `room`; it is taken as it is, `backends.fit.advice` knows what to change.

    `learned` are the figures of a start with the same settings on such GPUs; `environ` is that of whoever starts it,
    by default this process's own. `held_bytes` is what a server of the profile that has slept holds of the host.
    """
    from backends.fit.words import arithmetic

    settings = read_settings(profile, os.environ if environ is None else environ)
    case = Case(profile, settings, checkpoint, room, learned)
    sums = _sums(case)
    needed = _needed(case, sums)
    verdict, why = _judge(case, sums, needed)
    layout = sums.layout
    return Fit(
        profile=profile.name,
        where=room.where,
        gpu_count=room.count,
        gpu_indices=room.indices,
        verdict=verdict,
        why=why,
        usable_bytes=room.usable_bytes,
        free_bytes=room.free_bytes,
        weights_bytes=sums.weights,
        kv_bytes=sums.kv,
        activation_bytes=sums.overhead.activation_bytes,
        non_torch_bytes=sums.overhead.non_torch_bytes,
        graphs_bytes=sums.overhead.graphs_bytes,
        context_bytes=sums.overhead.context_bytes + sums.overhead.peers_bytes,
        needed_bytes=needed,
        kv_bytes_per_token=layout if isinstance(layout, Missing) else round(layout.bytes_per_token),
        kv_tokens=sums.tokens,
        max_model_len=sums.length,
        longest_context=sums.longest,
        concurrency=sums.concurrency,
        learned=sums.overhead.learned or bool(learned and learned.kv_tokens),
        arithmetic=arithmetic(case, sums, needed, cost := asleep(profile, sums.weights, room.count, held_bytes)),
        asleep=cost,
    )


def reservation_bytes(
    profile: Profile,
    usable_bytes_per_gpu: int,
    learned: StartFigures | None = None,
    environ: Mapping[str, str] | None = None,
) -> int | Missing:
    """Return how many bytes of each of its GPUs a server of `profile` will take, once it is ready.

    Its share of the GPU; with `kv_cache_memory_bytes`, weights, cache and overhead together. Missing where it takes
    more as it works, or where its weights are not known.
    """
    environ = os.environ if environ is None else environ
    settings = read_settings(profile, environ)
    if settings.engine != "vllm":
        return Missing(f"{settings.engine} takes more of a GPU as conversations grow")
    if settings.space_bytes is None:
        return math.ceil(settings.utilization * usable_bytes_per_gpu)
    checkpoint = read_checkpoint(profile, environ)
    case = Case(profile, settings, checkpoint, Room(settings.gpus, "", usable_bytes_per_gpu, 0), learned)
    weights = _weights(case)
    if isinstance(weights, Missing):
        return weights
    step = step_of(settings, usable_bytes_per_gpu, "")
    return weights + settings.space_bytes + gpu_overhead(case.config, settings, step, learned).total_bytes


def _sums(case: Case) -> Sums:
    settings, room = case.settings, case.room
    on_gpu = room.count > 0
    usable = 0 if isinstance(room.usable_bytes, Missing) else room.usable_bytes
    step = step_of(settings, usable, room.name) if on_gpu else Step(settings.max_batched_tokens or 2048, 128)
    overhead = gpu_overhead(case.config, settings, step, case.learned) if on_gpu else cpu_overhead(case.learned)
    weights = _weights(case)
    layout: Layout | Missing
    if isinstance(case.checkpoint, Missing):
        layout = case.checkpoint
    else:
        layout = read_layout(case.config, settings, step.tokens, on_gpu=on_gpu)
    kv = _kv_bytes(case, weights, overhead)
    unnamed = _unnamed_bytes(case, weights, overhead, kv)
    overhead = replace(overhead, non_torch_bytes=overhead.non_torch_bytes + unnamed)
    if settings.blocks and not isinstance(layout, Missing) and not isinstance(kv, Missing):
        kv = layout.used_bytes(settings.blocks)
    if not isinstance(layout, Missing) and not layout.layers:
        length = _length(case, None)
        return Sums(overhead, weights, 0, layout, length, Missing("an encoder has no KV cache"), length, 1.0)
    length = _length(case, None if isinstance(kv, Missing) or isinstance(layout, Missing) else (layout, kv))
    limit = max(model_context(case.config), 0 if isinstance(length, Missing) else length)
    tokens: int | Missing
    longest: int | Missing
    concurrency: float | Missing
    if isinstance(kv, Missing):
        tokens = longest = concurrency = kv
    elif isinstance(layout, Missing):
        tokens = longest = _learned_tokens(case, kv) or layout
        concurrency = _ratio(tokens, length)
    elif isinstance(length, Missing):
        tokens, longest, concurrency = layout.tokens(kv, 4096, settings.blocks), length, length
    else:
        told = case.learned
        longest = layout.longest(kv, limit, settings.blocks)
        concurrency = layout.concurrency(kv, length, settings.blocks) * settings.data_parallel
        tokens = int(concurrency * length)
        if learned := _learned_tokens(case, kv):
            tokens = learned
            exact = told.max_concurrency if told and told.max_model_len == length else None
            concurrency = exact or _ratio(tokens, length)
    return Sums(overhead, weights, kv, layout, length, tokens, longest, concurrency)


def _weights(case: Case) -> int | Missing:
    if case.learned and case.learned.weights_bytes:
        return case.learned.weights_bytes
    if isinstance(case.checkpoint, Missing):
        return case.checkpoint
    if isinstance(case.checkpoint.pieces, Missing):
        return case.checkpoint.pieces
    config = {**case.config, "tie_word_embeddings": _tied(case.checkpoint)}
    return weights_bytes(case.checkpoint.pieces, config, case.settings, on_gpu=case.room.count > 0)


def _tied(checkpoint: Checkpoint) -> bool:
    said = checkpoint.text_config.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings"))
    return said is True


def _kv_bytes(case: Case, weights: int | Missing, overhead: Overhead) -> int | Missing:
    """Return the KV cache's bytes on each GPU, below zero where weights and overhead are more than the share."""
    settings, room = case.settings, case.room
    if settings.space_bytes is not None:
        return settings.space_bytes
    if isinstance(room.usable_bytes, Missing):
        return room.usable_bytes
    told = case.learned.kv_available_bytes if case.learned else None
    if isinstance(weights, Missing):
        return weights if told is None else told
    if settings.engine == "transformers":
        free = room.free_bytes
        return free if isinstance(free, Missing) else free - weights - overhead.total_bytes
    left = math.ceil(settings.utilization * room.usable_bytes) - weights - overhead.inside_bytes
    if told is not None and 0 <= left - told <= UNRECORDED_BYTES:
        return told
    return left


def _unnamed_bytes(case: Case, weights: int | Missing, overhead: Overhead, kv: int | Missing) -> int:
    """Return what an earlier start took from its KV cache without naming it."""
    usable, settings = case.room.usable_bytes, case.settings
    if isinstance(usable, Missing) or isinstance(weights, Missing) or isinstance(kv, Missing) or not case.learned:
        return 0
    if settings.space_bytes is not None or settings.engine == "transformers":
        return 0
    return max(0, math.ceil(settings.utilization * usable) - weights - overhead.inside_bytes - kv)


def _length(case: Case, cache: tuple[Layout, int] | None) -> int | Missing:
    """Return the longest conversation that the server is to take on."""
    own = model_context(case.config)
    asked = case.settings.max_model_len
    if asked == 0:
        if cache is None or not own:
            return Missing("max_model_len is auto: as long as fits")
        return max(1, cache[0].longest(cache[1], own, case.settings.blocks))
    if asked is None and case.learned and case.learned.max_model_len:
        return case.learned.max_model_len
    return asked or own or Missing("neither the profile nor the model says how long a context may be")


def _learned_tokens(case: Case, kv: int) -> int | None:
    """Return the tokens that a start with the same settings logged, for as much cache as there is now."""
    told = case.learned
    if told is None or not told.kv_tokens:
        return None
    if case.settings.blocks or not told.kv_available_bytes:
        return told.kv_tokens
    return max(0, round(told.kv_tokens * kv / told.kv_available_bytes))


def _ratio(tokens: int | Missing, length: int | Missing) -> float | Missing:
    if isinstance(tokens, Missing):
        return tokens
    return length if isinstance(length, Missing) else tokens / length


def _needed(case: Case, sums: Sums) -> int | Missing:
    """Return the bytes that the server takes of each GPU; of the host, what it takes at once."""
    if isinstance(sums.weights, Missing):
        return sums.weights
    if case.settings.engine == "transformers" or isinstance(sums.kv, Missing):
        return sums.weights + sums.overhead.total_bytes
    if isinstance(sums.layout, Layout) and not sums.layout.layers and not isinstance(case.room.usable_bytes, Missing):
        return sums.weights + sums.overhead.total_bytes
    return sums.weights + max(0, sums.kv) + sums.overhead.total_bytes


def _judge(case: Case, sums: Sums, needed: int | Missing) -> tuple[Verdict, str]:
    from backends.fit.words import gib

    settings, room = case.settings, case.room
    count, size = heads(case.config), settings.tensor_parallel
    if size > 1 and count % size:
        return Verdict.NO, f"{count} attention heads cannot be divided among {size} GPUs"
    own = model_context(case.config)
    if own and settings.max_model_len and settings.max_model_len > own and "rope" not in str(sorted(case.profile.args)):
        return Verdict.NO, f"max_model_len {settings.max_model_len:,} is more than the model was made for ({own:,})"
    if room.refusal:
        return Verdict.NO, room.refusal
    if isinstance(needed, Missing):
        return Verdict.UNKNOWN, needed.reason
    if isinstance(room.usable_bytes, Missing):
        return Verdict.UNKNOWN, f"it needs {gib(least_memory(case, sums))} of memory: {room.usable_bytes.reason}"
    kv = sums.kv
    if isinstance(kv, Missing):
        return Verdict.UNKNOWN, kv.reason
    if kv <= 0 and not (isinstance(sums.layout, Layout) and not sums.layout.layers):
        return Verdict.NO, f"the weights leave no room for a KV cache: {gib(-kv)} too little"
    length, tokens = sums.length, sums.tokens
    short = isinstance(sums.longest, int) and isinstance(length, int) and sums.longest < length
    if short and isinstance(sums.layout, Layout) and settings.max_model_len != 0:
        lack = sums.layout.room_for(length if isinstance(length, int) else 0)
        return Verdict.NO, (
            f"room for {sums.longest:,} tokens of KV cache; one conversation of {length:,} needs {gib(lack)}, "
            f"there is {gib(kv)}"
        )
    wanted = _wanted_at_start(case, sums, needed)
    free = room.free_bytes
    if isinstance(free, int) and wanted > free:
        held = f"; held by {', '.join(room.holders)}" if room.holders else ""
        return Verdict.NO, f"it takes {gib(wanted)}, {gib(free)} can be had on {room.where}{held}"
    if isinstance(tokens, Missing):
        return (Verdict.FITS if isinstance(sums.layout, Layout) else Verdict.UNKNOWN), tokens.reason
    several = f"{tokens:,} tokens of KV cache"
    if isinstance(sums.concurrency, float):
        several += f": {sums.concurrency:,.1f} × {length:,} at once"
    if isinstance(sums.concurrency, float) and sums.concurrency < TIGHT_CONCURRENCY:
        return Verdict.TIGHT, several
    if room.count and isinstance(free, int) and free - needed < TIGHT_FREE_BYTES:
        return Verdict.TIGHT, f"{several}; {gib(max(0, free - needed))} of the GPU stay free"
    return Verdict.FITS, several


def _wanted_at_start(case: Case, sums: Sums, needed: int) -> int:
    """Return the bytes that must be free: vLLM insists on its whole share, whatever it puts there.

    CUDA graphs are left out: whether they find room is seen once all else is in its place. So is what exchanging with
    other GPUs takes: known of large GPUs only, it must keep no server from small ones.
    """
    usable, settings = case.room.usable_bytes, case.settings
    must = needed - sums.overhead.graphs_bytes - sums.overhead.peers_bytes
    if isinstance(usable, Missing) or settings.engine == "transformers" or settings.space_bytes is not None:
        return must
    return max(must, math.ceil(settings.utilization * usable) + sums.overhead.context_bytes)


def least_memory(case: Case, sums: Sums) -> int:
    """Return the bytes of memory that each GPU should have, for one conversation of full length."""
    weights = 0 if isinstance(sums.weights, Missing) else sums.weights
    one = 0
    if isinstance(sums.layout, Layout) and isinstance(sums.length, int):
        one = sums.layout.room_for(sums.length)
    share = case.settings.utilization if case.settings.space_bytes is None and case.settings.engine == "vllm" else 1.0
    return math.ceil((weights + one + sums.overhead.inside_bytes) / share)


def without_cache(learned: StartFigures | None) -> StartFigures | None:
    """Return what is still true of learned figures where the KV cache is set otherwise."""
    return learned and replace(
        learned, kv_available_bytes=None, kv_tokens=None, max_concurrency=None, max_model_len=None
    )
