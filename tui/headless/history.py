"""`gpubox history`: the launches of the past, from the records; no keeper is asked."""

from __future__ import annotations

import json
from dataclasses import asdict

from backends import paths
from backends.errors import GpuboxError, NoSuchServerError
from backends.records import Launch, Records
from tui.format import NOTHING, fit, moment, short_gpu_name
from tui.headless.output import say, table
from tui.progress import figures_text, stages_text, took_text

CAUSE = 60


class RecordsUnreadableError(GpuboxError):
    """The records are there, but cannot be read."""


def history(name: str | None, *, limit: int, as_json: bool) -> int:
    """Print the newest launches, of one server or of all; of one server with stages, figures and cause."""
    records = Records(paths.records_path())
    launches = records.launches(name, limit)
    if records.problem is not None:
        raise RecordsUnreadableError(records.problem, "the keeper sets a broken file aside at the next launch")
    if as_json:
        print(json.dumps([{**asdict(launch), "start_s": launch.start_s} for launch in launches], indent=2))
        return 0
    if not launches:
        if name is not None:
            known = ", ".join(sorted({launch.server for launch in records.launches()}))
            raise NoSuchServerError(f"no launch of {name} is on record", f"known: {known or 'none yet'}")
        say("no launch is on record yet")
        return 0
    heads = ("LAUNCHED", "SERVER", "ENGINE", "ON", "START", "COMPILE", "OUTCOME")
    print(table(heads, [_row(launch) for launch in launches], right=(4,)))
    for launch in launches if name is not None else ():
        print("\n".join(_about(launch)))
    return 0


def _row(launch: Launch) -> tuple[str, ...]:
    outcome = launch.outcome if launch.cause is None else f"{launch.outcome}: {fit(launch.cause, CAUSE)}"
    return (
        moment(launch.launched_at),
        launch.server,
        f"{launch.engine} {launch.engine_version or ''}".strip(),
        f"{launch.gpu_count} × {short_gpu_name(launch.gpu_kind)}" if launch.gpu_count else launch.gpu_kind,
        NOTHING if launch.start_s is None else took_text(launch.start_s),
        {True: "cached", False: "compiled", None: NOTHING}[launch.compile_cached],
        outcome,
    )


def _about(launch: Launch) -> list[str]:
    lines = ["", moment(launch.launched_at)]
    if launch.cause is not None:
        lines.append(f"  cause:   {launch.cause}" + (f" [{launch.card}]" if launch.card else ""))
    if launch.stages:
        lines.append(f"  stages:  {stages_text(launch.stages)}")
    if launch.figures is not None:
        lines.append(f"  memory:  {figures_text(launch.figures)}")
    return [*lines, f"  log:     {launch.log_path}"]
