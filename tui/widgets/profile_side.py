"""What a profile comes to: the exact command, whether it fits, what is wrong with it; as text, and worked out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from backends.fit.estimate import Fit
from backends.snapshots import Server
from profiles.commands import export_command
from profiles.drafts import Checked, check_text
from profiles.errors import ProfileProblem
from tui.format import plural
from tui.launching import model_here
from tui.themes import STATES, Palette
from tui.widgets.fit_bar import drawn


@dataclass(frozen=True, slots=True)
class Look:
    """A profile's text as it was looked at: what it amounts to, and the command that it stands for, if for any."""

    name: str
    text: str
    checked: Checked
    command: str | None


def look_at(name: str, text: str, path: Path) -> Look:
    """Check a text and build its command; touches nothing on disk but is not for the UI loop."""
    checked = check_text(text, path)
    profile = checked.profile
    return Look(name, text, checked, None if profile is None else export_command(profile, None, model_here(profile)))


def look_at_file(name: str, path: Path) -> Look:
    """Read a profile's file and look at it; one that cannot be read has that as its problem."""
    try:
        return look_at(name, path.read_bytes().decode(), path)
    except OSError as problem:
        what = f"cannot be read: {problem.strerror}"
    except UnicodeDecodeError as problem:
        what = f"is not UTF-8 (byte {problem.start})"
    return Look(name, "", Checked(None, {}, (ProfileProblem(str(path), "", what),)), None)


def side_text(
    look: Look,
    fit: Fit | str | None,
    servers: Sequence[Server],
    width: int,
    colours: Palette,
    *,
    editing: bool,
    brief: bool,
) -> Text:
    """Build what stands beside a profile: its command, and unless it shall be `brief` fit, servers and purpose.

    While it is edited, its problems stand under the editor instead.
    """
    lines: list[Text] = []
    if look.command is not None:
        command = look.command.replace(" \\\n ", "") if brief else look.command
        lines.append(Text(f"$ {command}", style=colours.text))
    elif editing:
        lines.append(Text("no command: it is no valid profile yet", style=colours.dim))
    if brief:
        return Text("\n").join(lines)
    if not editing:
        lines += [problem_text(one, colours, wrong=True) for one in look.checked.problems]
        lines += [problem_text(one, colours, wrong=False) for one in look.checked.warnings]
    if isinstance(fit, Fit):
        lines += [Text(""), drawn(fit, width, colours)]
    elif fit is not None:
        lines += [Text(""), Text(f"? {fit}", style=colours.dim)]
    used_by = [_server_text(server, colours) for server in servers if server.profile == look.name]
    lines += [Text(""), *used_by] if used_by else []
    profile = look.checked.profile
    if profile is not None and profile.description.strip():
        lines += [Text(""), Text(" ".join(profile.description.split()), style=colours.dim)]
    return Text("\n").join(lines)


def _server_text(server: Server, colours: Palette) -> Text:
    sign, _ = STATES[server.state]
    where = f", port {server.port}" if server.is_live and server.port else ""
    return Text.assemble(
        (f"{sign} ", colours.state(server.state)), (f"{server.name} is {server.state.value}{where}", colours.text)
    )


def problem_text(problem: ProfileProblem, colours: Palette, *, wrong: bool) -> Text:
    """Build one problem's line: where, what, what to do."""
    sign, style = ("✗", colours.bad) if wrong else ("▲", colours.warn)
    place = f"line {problem.line} " if problem.line else ""
    text = Text.assemble((f"{sign} {place}", style))
    if problem.where:
        text.append(f"{problem.where} ", f"bold {colours.text}")
    text.append(problem.message, colours.text)
    if problem.suggestion:
        text.append(f"; {problem.suggestion}", colours.accent)
    return text


def problems_text(checked: Checked, most: int, colours: Palette) -> Text:
    """Build what stands under the editor: at most so many lines, the problems first."""
    found = [problem_text(one, colours, wrong=True) for one in checked.problems]
    found += [problem_text(one, colours, wrong=False) for one in checked.warnings]
    if not found:
        return Text("✓ valid", style=colours.good)
    if len(found) > most:
        left = len(found) - most + 1
        found = [*found[: most - 1], Text(f"… and {plural(left, 'more problem')}", style=colours.dim)]
    return Text("\n").join(found)
