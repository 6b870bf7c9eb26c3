"""`gpubox history`: the launches and switches of the past, from the records; no keeper is asked."""

from __future__ import annotations

import json
from dataclasses import asdict

from backends import paths
from backends.errors import GpuboxError, NoSuchServerError
from backends.records import Launch, Records
from backends.switch_records import SwitchRecord, switches
from tui.format import NOTHING, fit, moment, short_gpu_name
from tui.headless.output import say, table
from tui.progress import figures_text, stages_text, took_text

CAUSE = 60


class RecordsUnreadableError(GpuboxError):
    """The records are there, but cannot be read."""


def history(name: str | None, *, limit: int, as_json: bool) -> int:
    """Print the newest launches and switches, of one server or of all; of one server with all that is known."""
    records = Records(paths.records_path())
    launches = records.launches(name, limit)
    problem = records.problem
    changes = switches(records, name, limit)
    if problem or records.problem:
        raise RecordsUnreadableError(
            problem or records.problem or "", "the keeper sets a broken file aside at the next launch"
        )
    if as_json:
        told = [{**asdict(launch), "start_s": launch.start_s} for launch in launches]
        print(json.dumps(told + [{"switch": True, **asdict(change)} for change in changes], indent=2))
        return 0
    if not launches and not changes:
        if name is not None:
            known = ", ".join(sorted({launch.server for launch in records.launches()}))
            raise NoSuchServerError(f"no launch of {name} is on record", f"known: {known or 'none yet'}")
        say("no launch is on record yet")
        return 0
    heads = ("LAUNCHED", "SERVER", "ENGINE", "ON", "START", "COMPILE", "OUTCOME")
    if launches:
        print(table(heads, [_row(launch) for launch in launches], right=(4,)))
    for launch in launches if name is not None else ():
        print("\n".join(_about(launch)))
    if changes:
        heads = ("SWITCHED", "TO", "BY", "TOOK", "GAVE WAY", "STEPS", "OUTCOME")
        print(("\n" if launches else "") + table(heads, [_switch_row(change) for change in changes], right=(3,)))
    return 0


def _switch_row(change: SwitchRecord) -> tuple[str, ...]:
    steps: dict[str, float] = {}
    for step in change.steps:
        steps[step.name] = max(steps.get(step.name, 0.0), step.took_s)
    return (
        moment(change.at),
        change.server,
        change.way,
        NOTHING if change.took_s is None else f"{change.took_s:.2f} s",
        ", ".join(f"{giver.server} {giver.how}" for giver in change.gave_way) or NOTHING,
        ", ".join(f"{name} {took_s:.2f}" for name, took_s in steps.items()) or NOTHING,
        change.outcome if change.error is None else f"{change.outcome}: {fit(change.error, CAUSE)}",
    )


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
