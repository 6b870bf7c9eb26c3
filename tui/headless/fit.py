"""`gpubox fit`: whether a profile fits, told before it is started."""

from __future__ import annotations

import json as json_format
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from backends.fit.bars import SIGNS, parts_of
from backends.fit.choices import Choices, choices_of
from backends.fit.estimate import Fit, Verdict
from backends.fit.words import gib
from backends.offline import snapshot_now
from backends.snapshots import Missing
from tui.headless.output import table
from tui.launching import Launchable, LaunchIntent

if TYPE_CHECKING:
    from profiles.schema import Profile

BAR_CELLS = 48
MARKS = {Verdict.FITS: "✓", Verdict.TIGHT: "⚠", Verdict.NO: "✗", Verdict.UNKNOWN: "?"}
COLOURS = {Verdict.FITS: "32", Verdict.TIGHT: "33", Verdict.NO: "31", Verdict.UNKNOWN: "33"}


def fit(launchable: Launchable, intent: LaunchIntent, *, json: bool) -> int:
    """Print how a launch fits into the GPUs it names, or into each sensible choice; returns 0 where it fits, else 1.

    Raises ProfileError, NoSuchGpuError and UsageError for what cannot be launched at all.
    """
    profile, _ = launchable.merged(intent)
    now = snapshot_now()
    held = (
        server.host_bytes for server in now.servers if (server.profile, server.model) == (profile.name, profile.model)
    )
    choices = choices_of(profile, now.box, intent.gpus, os.environ, held_bytes=max(held, default=0))
    if json:
        print(json_format.dumps(_as_json(choices), indent=2))
    else:
        print("\n".join(_lines(profile, choices)))
    return 0 if choices.advised is not None else 1


def _lines(profile: Profile, choices: Choices) -> list[str]:
    told = choices.advised or choices.fits[0]
    lines = [f"{profile.name} · {profile.model} · on {told.where}", ""]
    lines += [*_bar(told), *(f"  {line}" for line in told.arithmetic), ""]
    mark = MARKS[told.verdict]
    if sys.stdout.isatty():
        mark = f"\x1b[{COLOURS[told.verdict]}m{mark}\x1b[0m"
    lines.append(f"{mark} {told.verdict}: {told.why}")
    lines += [f"  → {change.text}{_how(change.set)}" for change in told.changes]
    if len(choices.fits) > 1:
        lines += ["", _rows(choices)]
    return lines


def _bar(fit: Fit) -> list[str]:
    parts = parts_of(fit, BAR_CELLS)
    if not parts:
        return []
    drawn = "".join(SIGNS[part.name] * part.cells for part in parts)
    legend = "   ".join(f"{SIGNS[part.name]} {part.name} {gib(part.amount_bytes)}" for part in parts)
    return [f"  ▕{drawn}▏", f"  {legend}", ""]


def _rows(choices: Choices) -> str:
    rows = [
        (
            "→" if fit is choices.advised else "",
            str(fit.gpu_count),
            ",".join(map(str, fit.gpu_indices)) or "–",
            str(fit.verdict),
            _known(fit.weights_bytes, gib),
            _known(fit.kv_bytes, gib),
            _known(fit.kv_tokens, lambda n: f"{n:,}"),
            _known(fit.longest_context, lambda n: f"{n:,}"),
            _known(fit.concurrency, lambda n: f"{n:,.1f}"),
        )
        for fit in choices.fits
    ]
    head = ("", "GPUS", "WHICH", "VERDICT", "WEIGHTS", "KV CACHE", "TOKENS", "LONGEST", "AT ONCE")
    return table(head, rows, right=(1, 4, 5, 6, 7, 8))


def _known(value: Any, how: Any) -> str:
    return "–" if isinstance(value, Missing) else str(how(value))


def _how(change: Mapping[str, Any]) -> str:
    """Return the flags that make a change at launch."""
    sets = " ".join(f"--set {key.removeprefix('args.')}={value}" for key, value in change.items())
    return f"  ({sets})" if sets else ""


def _as_json(choices: Choices) -> dict[str, Any]:
    rows = [asdict(fit) | {"overhead_bytes": fit.overhead_bytes} for fit in choices.fits]
    advised = choices.fits.index(choices.advised) if choices.advised else None
    return {"advised": advised, "choices": rows, "model_folder": choices.folder}
