"""`gpubox profiles …`: list, show, validate, new, edit, copy, rm, import, command."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backends.errors import ProfileError, UsageError
from tui.format import counted
from tui.headless.output import say, table
from tui.launching import open_store, profile_error

if TYPE_CHECKING:
    from profiles.errors import ProfileProblem
    from profiles.schema import Profile
    from profiles.store import Entry, Store

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="The profile's name, or the path of its file.")]

SKELETON = """\
# What each key means, and all others: docs/profiles.md
description = ""
engine = "vllm"
model = "{model}"

# The engine's own arguments: max_model_len = 2048 becomes --max-model-len 2048
[args]
gpu_memory_utilization = 0.9
"""


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what the profiles package raises into what a command ends with."""
    from profiles.errors import InvalidProfileError

    try:
        yield
    except InvalidProfileError as wrong:
        raise profile_error(wrong) from None
    except OSError as problem:
        raise ProfileError(f"{problem.filename}: {problem.strerror}", "correct its path or mode") from None


@app.command("list")
def list_(ctx: typer.Context, json: Json = False) -> int:
    """List all profiles; broken ones with what is wrong."""
    entries = open_store(ctx.obj).entries()
    if json:
        print(jsonlib.dumps([_entry_as_json(entry) for entry in entries], indent=2))
        return 0
    rows = [
        (e.name, p.engine, str(p.gpus), e.origin, p.model) if (p := e.profile) else (e.name, "broken", "", e.origin, "")
        for e in entries
    ]
    print(table(("NAME", "ENGINE", "GPUS", "FROM", "MODEL"), rows))
    for entry in entries:
        for problem in entry.problems:
            say(f"✗ {problem}")
    return 0


@app.command()
def show(ctx: typer.Context, name: Name, json: Json = False) -> int:
    """Show a profile: what it says, and what it leaves to the defaults."""
    from profiles.arguments import lint

    with _told():
        loaded = open_store(ctx.obj).load(name)
    warnings = lint(loaded.profile, str(loaded.path))
    if json:
        found = loaded.profile.model_dump() | {"origin": loaded.origin, "path": str(loaded.path)}
        print(jsonlib.dumps(found | {"warnings": [_problem_as_json(p) for p in warnings]}, indent=2))
        return 0
    print(f"{loaded.profile.name} ({loaded.origin}: {loaded.path})")
    if loaded.profile.description:
        print("\n" + textwrap.fill(loaded.profile.description, 88))
    print("\n" + "\n".join(_facts(loaded.profile)))
    for warning in warnings:
        say(f"⚠ {warning}")
    return 0


def _facts(profile: Profile) -> Iterator[str]:
    """Yield a profile's settings in aligned lines."""
    import tomli_w

    port = "any free port" if profile.port == "auto" else f"port {profile.port}"
    retry = profile.restart
    again = f"after a failure, {counted(retry.max_attempts, 'time')}, from {retry.backoff_s:g} s on"
    facts: list[tuple[str, Sequence[str]]] = [
        ("engine", [profile.engine + (f" of {profile.python}" if profile.python else "")]),
        ("model", [f"{profile.model} ({profile.hub_endpoint or profile.source})"]),
        ("served as", [profile.served_name]),
        ("GPUs", ["none: on the CPU" if profile.gpus == "cpu" else str(profile.gpus)]),
        ("address", [f"{profile.host}, {port}"]),
        ("arguments", [line for line in tomli_w.dumps(profile.args).splitlines() if line]),
        ("environment", [f"{name}={value}" for name, value in profile.env.items()]),
        ("secrets", [f"{name} from {reference}" for name, reference in profile.secrets.items()]),
        ("sleep", list(_sleep(profile))),
        ("stop", [f"lets requests drain for {profile.drain_s:g} s"]),
        ("restart", ["never" if retry.policy == "never" else again]),
        ("logs", [f"of {counted(profile.logs.keep, 'start')}, {profile.logs.max_mb} MiB a file"]),
    ]
    for label, lines in facts:
        for index, line in enumerate(lines):
            yield f"  {label if index == 0 else '':<13}{line}"


def _sleep(profile: Profile) -> Iterator[str]:
    if profile.sleep:
        idle = "" if profile.ttl is None else f" after {profile.ttl:g} idle min, and"
        yield f"sleeps{idle} to give way; wakes {'for a request, too' if profile.wake_on_request else 'when told'}"


@app.command()
def validate(
    ctx: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Names or paths; all where none is given.")] = None,
    json: Json = False,
) -> int:
    """Check profiles: exit code 3 where one cannot be used; suspicious arguments are only warned of."""
    from profiles.arguments import lint

    store = open_store(ctx.obj)
    entries = [_entry_of(store, name) for name in names] if names else store.entries()
    findings = [(entry, lint(entry.profile, str(entry.path)) if entry.profile else ()) for entry in entries]
    if json:
        rows = [_entry_as_json(entry) | {"warnings": [_problem_as_json(p) for p in w]} for entry, w in findings]
        print(jsonlib.dumps(rows, indent=2))
    else:
        for entry, warnings in findings:
            lines = [f"✗ {problem}" for problem in entry.problems] + [f"⚠ {warning}" for warning in warnings]
            print("\n".join(lines or [f"✓ {entry.name}"]))
    return ProfileError.exit_code if any(entry.problems for entry in entries) else 0


def _entry_of(store: Store, name: str) -> Entry:
    """Return the row of one name or path; one that is not there is a problem like any other."""
    from profiles.errors import InvalidProfileError
    from profiles.store import Entry

    try:
        loaded = store.load(name)
    except InvalidProfileError as wrong:
        return Entry(name, Path(name), "user", None, wrong.problems)
    return Entry(loaded.profile.name, loaded.path, loaded.origin, loaded.profile)


@app.command()
def new(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The new profile's name.")],
    template: Annotated[str | None, typer.Option("--from", help="Begin with a copy of this profile.")] = None,
    model: Annotated[str | None, typer.Option(help="A hub's id, or a path.")] = None,
) -> int:
    """Make a profile, from another one or from a model; `edit` it afterwards."""
    from profiles.schema import parse_profile

    store = open_store(ctx.obj)
    with _told():
        if template and model:
            data = store.load(template).data | {"name": name, "model": model}
            kept = {key: value for key, value in data.items() if key not in ("description", "source", "served_name")}
            path = store.write(parse_profile(kept, f"{template} with that model"))
        elif template:
            path = store.copy(template, name)
        elif model:
            path = store.write_text(name, SKELETON.format(model=model))
        else:
            raise UsageError("a new profile needs --model MODEL or --from PROFILE", "gpubox profiles list shows them")
    print(path)
    say(f"edit it: gpubox profiles edit {name}   start it: gpubox --headless --profile {name}")
    return 0


@app.command()
def copy(ctx: typer.Context, name: Name, new_name: Annotated[str, typer.Argument(help="The copy's name.")]) -> int:
    """Copy a profile, comments and all, into your own folder (or into --profile-dir)."""
    with _told():
        print(open_store(ctx.obj).copy(name, new_name))
    return 0


@app.command()
def rm(ctx: typer.Context, names: Annotated[list[str], typer.Argument(help="Profiles of your own.")]) -> int:
    """Delete profiles of your own; those of the library stay."""
    store = open_store(ctx.obj)
    for name in names:
        with _told():
            print(f"removed {store.remove(name)}")
    return 0


@app.command()
def edit(ctx: typer.Context, name: Annotated[str, typer.Argument(help="The profile's name.")]) -> int:
    """Edit a profile in $VISUAL or $EDITOR; it is saved once it is valid. One of the library becomes your own."""
    from profiles.errors import InvalidProfileError

    store = open_store(ctx.obj)
    with _told():
        text = before = store.find(name)[0].read_text(encoding="utf-8", errors="replace")
    draft = Path(tempfile.mkdtemp(prefix="gpubox-")) / f"{name}.toml"
    draft.write_text(text, encoding="utf-8")
    while True:
        _run_editor(draft)
        text = draft.read_text(encoding="utf-8", errors="replace")
        if text == before:
            say(f"{name} is unchanged")
            break
        try:
            with _told_os_errors(draft):
                print(store.write_text(name, text, overwrite=True))
            break
        except InvalidProfileError as wrong:
            for problem in wrong.problems:
                say(f"✗ {problem}")
            if not _again():
                raise ProfileError(f"{name} is not saved", f"your text is in {draft}") from None
    draft.unlink()
    draft.parent.rmdir()
    return 0


def _run_editor(draft: Path) -> None:
    argv = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        code = subprocess.run([*argv, str(draft)], check=False).returncode
    except OSError as problem:
        raise UsageError(f"{argv[0]} cannot be run: {problem.strerror}", "set EDITOR") from None
    if code != 0:
        raise ProfileError(f"{argv[0]} ended with {code}, so nothing is saved", f"your text is in {draft}")


@contextlib.contextmanager
def _told_os_errors(draft: Path) -> Iterator[None]:
    try:
        yield
    except OSError as problem:
        raise ProfileError(f"{problem.filename}: {problem.strerror}", f"your text is in {draft}") from None


def _again() -> bool:
    """Ask whether to go on editing; where nobody answers, no."""
    sys.stderr.write("Edit again? [Y/n] ")
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return answer != "" and not answer.strip().lower().startswith("n")


@app.command("import")
def import_(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]", help="In quotes; or on input.")] = None,
    name: Annotated[str | None, typer.Option(help="The profile's name.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a profile of that name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the profile, write nothing.")] = False,
    json: Json = False,
) -> int:
    """Turn `vllm serve …`, `docker run … vllm/vllm-openai …` or `transformers serve …` into a profile."""
    from profiles.arguments import lint
    from profiles.commands import import_command
    from profiles.schema import parse_profile
    from profiles.store import to_toml

    text = sys.stdin.read() if not words else words[0] if len(words) == 1 else shlex.join(words)
    with _told():
        imported = import_command(text, name)
        profile = parse_profile(imported.profile, "the command")
        path = None if dry_run else open_store(ctx.obj).write(profile, overwrite=force)
    if json:
        found = {"profile": imported.profile, "path": str(path) if path else None, "gpus": imported.gpus}
        print(jsonlib.dumps(found | {"notes": imported.notes}, indent=2))
    else:
        print(path or to_toml(profile).rstrip())
    for note in imported.notes:
        say(f"· {note}")
    for warning in lint(profile):
        say(f"⚠ {warning}")
    if path:
        gpus = f" --gpus {imported.gpus}" if imported.gpus else ""
        say(f"start it: gpubox --headless --profile {profile.name}{gpus}")
    return 0


@app.command()
def command(
    ctx: typer.Context,
    name: Name,
    gpus: Annotated[str | None, typer.Option(help="GPU indices in PCI order (6,7), or cpu.")] = None,
) -> int:
    """Print the shell command that starts what the profile says."""
    from profiles.commands import export_command

    chosen = [part.strip() for part in gpus.split(",")] if gpus else []
    if chosen != ["cpu"] and not all(index.isdecimal() for index in chosen):
        raise UsageError(f"--gpus {gpus} are not GPU indices", "such as --gpus 6,7")
    with _told():
        profile = open_store(ctx.obj).load(name).profile
    model = None
    if profile.source == "demo":
        from backends.demo.model import demo_model_dir

        model = str(demo_model_dir())
    print(export_command(profile, chosen, model))
    return 0


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = {"name": entry.name, "origin": entry.origin, "path": str(entry.path)}
    if entry.profile:
        found |= {key: getattr(entry.profile, key) for key in ("engine", "model", "gpus", "description")}
    return found | {"problems": [_problem_as_json(problem) for problem in entry.problems]}


def _problem_as_json(problem: ProfileProblem) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(problem)
