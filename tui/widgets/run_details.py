"""All about one launch on record: what its stages took, what it told of its memory, and how it ended."""

from __future__ import annotations

from rich.text import Text

from backends.records import Launch
from tui.format import fit_path, moment
from tui.progress import figures_text, took_text
from tui.themes import Palette
from tui.widgets.bars import bar
from tui.widgets.run_table import gpus_text, outcome_text, ran_text

LABEL = 10
STAGE = 12
TOOK = 8
LONGEST_BAR = 40


def run_details(launch: Launch, now: float, width: int, colours: Palette, *, has_log: bool) -> Text:
    """Build the lines about a launch in `width` cells; the cause of a failure comes first, whole."""
    lines = []
    if launch.cause is not None:
        lines.append(Text(launch.cause, style=colours.bad))
    lines.append(_line("outcome", outcome_text(launch, colours)))
    if launch.card is not None:
        lines.append(_line("card", Text(f"{launch.card}; gpubox diagnose {launch.server} tells more", colours.text)))
    lines.append(_line("launched", Text(f"{moment(launch.launched_at)} · ran {ran_text(launch, now)}", colours.text)))
    engine = f"{launch.engine} {launch.engine_version or ''}".rstrip()
    lines.append(_line("engine", Text(f"{engine} on {gpus_text(launch)}", colours.text)))
    lines.append(_line("profile", Text(launch.profile, colours.text)))
    if launch.stages:
        lines += _stages(launch, width, colours)
    if launch.figures is not None:
        lines.append(_line("memory", Text(figures_text(launch.figures), colours.text)))
    where = Text(fit_path(launch.log_path, width - LABEL), colours.text if has_log else colours.dim)
    lines.append(_line("log", where if has_log else where.append(" (is gone)")))
    return Text("\n").join(lines)


def _stages(launch: Launch, width: int, colours: Palette) -> list[Text]:
    """Draw each stage's time as a bar, the longest the longest; the last line tells the whole."""
    most = max(stage.took_s for stage in launch.stages)
    room = max(4, min(LONGEST_BAR, width - LABEL - STAGE - TOOK - 2))
    lines = []
    for number, stage in enumerate(launch.stages):
        line = Text.assemble((f"{'stages' if number == 0 else '':<{LABEL}}", colours.dim))
        line.append(f"{stage.name:<{STAGE}}", colours.text).append(f"{took_text(stage.took_s):>{TOOK}}  ", colours.text)
        length = stage.took_s / most if most > 0 else 0.0
        lines.append(line.append_text(bar(length, room, colours.primary, colours.background)))
    if launch.start_s is not None:
        cached = {True: " · compile cache used", False: " · compiled anew", None: ""}[launch.compile_cached]
        lines.append(_line("", Text(f"ready after {took_text(launch.start_s)}{cached}", colours.text)))
    return lines


def _line(label: str, value: Text) -> Text:
    return Text.assemble(f"{label:<{LABEL}}", value)
