"""The command line: flags and subcommands; what they do lives in `tui.headless`, the control center in `tui.app`.

Imports of what a command needs happen inside it, so that each pays only for itself.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from backends.errors import UsageError
from backends.readonly import forbid, forbids, refusal
from tui.headless.autostart import app as autostart_app
from tui.headless.profiles import app as profiles_app
from tui.launching import LaunchIntent, open_store, read_launchable

app = typer.Typer(
    name="gpubox",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(profiles_app, name="profiles", help="List, show, check, make, import and export profiles.")
app.add_typer(autostart_app, name="autostart", help="Have a set of profiles start after a reboot.")

EXIT_CODES = """
Exit codes: 0 ready or done, 1 other error, 2 bad usage, 3 bad profile, 4 no such GPU, 5 GPU busy, 6 start failed,
7 waiting over (the server keeps starting), 8 the keeper cannot be reached, 9 no such server, 10 conflict.
"""

READING = frozenset({"status", "logs", "chat", "diagnose", "fit", "doctor", "history", "profiles", "web"})
"""Commands that change nothing."""

READING_PROFILES = frozenset({"list", "show", "validate", "command"})

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="The server's name.")]
WaitS = Annotated[float | None, typer.Option("--wait", help="Wait at most so many seconds for ready.", min=0)]


BEFORE_COMMANDS = ("profile_dir", "readonly")


@profiles_app.callback()
def profiles_root(ctx: typer.Context) -> None:
    """List, show, check, make, import and export profiles."""
    if forbids() and ctx.invoked_subcommand not in READING_PROFILES:
        raise refusal(f"change profiles: {ctx.invoked_subcommand}")


@app.callback(invoke_without_command=True, epilog=EXIT_CODES)
def root(
    ctx: typer.Context,
    profile: Annotated[str | None, typer.Option(help="Start this profile.")] = None,
    gpus: Annotated[str | None, typer.Option(help="GPU indices or UUID prefixes (6,7), 'auto', or 'cpu'.")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No screen: start, wait for ready, and return.")] = False,
    name: Annotated[str | None, typer.Option(help="The server's name, where it is not the profile's.")] = None,
    port: Annotated[str | None, typer.Option(help="A port, or 'auto'.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="An engine argument: max_model_len=2048 (repeatable).")
    ] = None,
    envs: Annotated[list[str] | None, typer.Option("--env", help="An environment variable: K=V (repeatable).")] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground/--detach", help="Stream the log until the engine ends; signals stop it.")
    ] = False,
    asleep: Annotated[
        bool, typer.Option("--asleep", help="A warm spare: starts once its GPUs have room, then sleeps.")
    ] = False,
    wait: WaitS = None,
    json: Json = False,
    profile_dir: Annotated[Path | None, typer.Option(help="Look for profiles here first.")] = None,
    simulate: Annotated[str | None, typer.Option(help="Show a simulated box: 8xH200.")] = None,
    readonly: Annotated[
        bool, typer.Option("--readonly", help="Watch only: start, stop, signal and write nothing.")
    ] = False,
    version: Annotated[bool, typer.Option("--version", help="Print gpubox's version.")] = False,
) -> Any:
    """gpubox: a control center for one GPU box. Without a command it opens the control center."""
    ctx.obj = profile_dir
    if readonly:
        forbid()
    if ctx.invoked_subcommand is not None:
        if readonly and ctx.invoked_subcommand not in READING:
            raise refusal(ctx.invoked_subcommand)
        allowed = {*BEFORE_COMMANDS, "simulate"} if ctx.invoked_subcommand == "web" else BEFORE_COMMANDS
        stray = [it.opts[0] for it in ctx.command.params if ctx.params.get(it.name) and it.name not in allowed]
        if stray:
            raise UsageError(f"{stray[0]} does not go before {ctx.invoked_subcommand}", "gpubox --help")
        return None
    if version:
        from importlib.metadata import version as version_of

        print(f"gpubox {version_of('gpubox')}")
        return 0
    for flag, given in (
        ("--foreground", foreground),
        ("--wait", wait is not None),
        ("--json", json),
        ("--asleep", asleep),
    ):
        if given and not headless:
            raise UsageError(f"{flag} goes with --headless")
    if foreground and (json or asleep or wait is not None):
        raise UsageError("--foreground goes without --wait, --json and --asleep: it ends with the engine")
    if readonly and profile is not None:
        raise refusal("start a server")
    if headless and profile is None:
        raise UsageError("--headless needs --profile NAME", "gpubox profiles list shows them")
    if headless and simulate:
        raise UsageError("--simulate is for the screen; a headless command speaks for a real box")
    intent = LaunchIntent(profile or "", _gpus(gpus), _port(port), tuple(sets or ()), tuple(envs or ()), name)
    if headless and profile is not None:
        from tui.headless.launch import Wishes, run

        request = read_launchable(open_store(profile_dir), profile).request(replace(intent, asleep=asleep))
        return run(request, Wishes(foreground=foreground, wait_s=wait, json=json))
    if not sys.stdout.isatty() and "TEXTUAL_DRIVER" not in os.environ:  # a browser's tab has a pipe
        raise UsageError("the control center needs a terminal", "use --headless, or a command such as `gpubox status`")
    from tui.headless.screen import open_screen

    return open_screen(open_store(profile_dir), intent if profile else None, simulate)


def _gpus(text: str | None) -> tuple[str, ...] | None:
    """Read `--gpus`: None leaves it to the profile."""
    chosen = None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())
    if chosen == ():
        raise UsageError("--gpus names no GPU", "say auto, cpu, indices (0,1) or beginnings of UUIDs (GPU-4a1f)")
    return chosen


def _port(text: str | None) -> int | None:
    """Read `--port`: 0 asks for any free one, None leaves it to the profile."""
    if text is None:
        return None
    if text == "auto":
        return 0
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise UsageError(f"--port {text!r} is not a port", "use 1–65535, or auto")


@app.command()
def status(
    json: Json = False, watch: Annotated[bool, typer.Option("--watch", help="Again each second.")] = False
) -> int:
    """Show the box and its servers."""
    from tui.headless.status import status as show

    return show(as_json=json, watch=watch)


@app.command()
def up(
    sets: Annotated[list[str] | None, typer.Argument(help="Sets of config.toml; without one, default.")] = None,
    wait: WaitS = None,
) -> int:
    """Start what does not run yet of a set of profiles, and wait until it is ready."""
    from tui.headless.autostart import up as do_up

    return do_up(sets or [], wait)


@app.command()
def stop(
    names: Annotated[list[str] | None, typer.Argument(help="Servers to stop.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Stop all servers.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not drain: kill at once.")] = False,
    wait: Annotated[float, typer.Option("--wait", help="Wait at most so many seconds.", min=0)] = 120.0,
) -> int:
    """Stop servers: let requests drain, ask them to end, kill what does not; their memory comes back."""
    if bool(names) == everything:
        raise UsageError("name servers to stop, or say --all")
    from tui.headless.control import stop as do_stop

    return do_stop(names or [], everything=everything, force=force, wait_s=wait)


@app.command()
def restart(name: Name, wait: WaitS = None, json: Json = False) -> int:
    """Start a server again as it was started; where it runs, stop it first."""
    from tui.headless.launch import Wishes
    from tui.headless.launch import restart as do_restart

    return do_restart(name, Wishes(wait_s=wait, json=json))


@app.command()
def switch(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A server or a profile; without it, the choices.")] = None,
    gpus: Annotated[str | None, typer.Option(help="Where to start it: GPU indices, 'auto', or 'cpu'.")] = None,
    level: Annotated[int | None, typer.Option(help="How deep those who give way sleep: 1 or 2.")] = None,
    drain: Annotated[float | None, typer.Option(help="Let their requests end for so many seconds.", min=0)] = None,
    json: Json = False,
) -> int:
    """Have a server serve: it wakes or starts, and what is in its way on those GPUs sleeps or stops."""
    from tui.headless.switch import level_of
    from tui.headless.switch import switch as do_switch

    return do_switch(name, gpus=_gpus(gpus), level=level_of(level), drain_s=drain, as_json=json, profile_dir=ctx.obj)


@app.command()
def sleep(
    name: Name,
    level: Annotated[int | None, typer.Option(help="1 keeps the weights in host memory, 2 does not.")] = None,
    wait: Annotated[float, typer.Option("--wait", help="Wait at most so many seconds.", min=0)] = 120.0,
) -> int:
    """Put a server to sleep: its GPUs' memory comes back, and it wakes in a second or a few."""
    from tui.headless.switch import level_of
    from tui.headless.switch import sleep as do_sleep

    return do_sleep(name, level=level_of(level), wait_s=wait)


@app.command()
def shutdown() -> int:
    """End the keeper, such as after an upgrade; servers go on, and the next command starts a new one."""
    from tui.headless.control import shutdown as do_shutdown

    return do_shutdown()


@app.command()
def forget(name: Name) -> int:
    """Drop a server that has ended from the list; its logs stay."""
    from tui.headless.control import forget as do_forget

    return do_forget(name)


@app.command()
def reap(
    pid: Annotated[int | None, typer.Argument(help="A foreign process to end instead, by its pid.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before orphans are killed.")] = False,
    confirm: Annotated[int | None, typer.Option(help="The foreign process's pid once more, in scripts.")] = None,
    json: Json = False,
) -> int:
    """End what servers left behind when they were killed; or a foreign process on a GPU, once its pid was typed."""
    from tui.headless.reap import reap as do_reap

    return do_reap(pid, yes=yes, confirm=confirm, as_json=json)


@app.command()
def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as the log grows.")] = False,
    lines: Annotated[int | None, typer.Option("-n", "--lines", help="Only the last N lines.", min=0)] = None,
    since: Annotated[str | None, typer.Option(help="Only lines of the last 90s, 10m, 2h, 1d, or since a time.")] = None,
    grep: Annotated[str | None, typer.Option(help="Only lines that match this regular expression.")] = None,
    start: Annotated[int, typer.Option(help="-1 is the start before the newest, -2 the one before that.", max=0)] = 0,
) -> int:
    """Show a server's log."""
    from tui.headless.logs import show

    return show(name, follow=follow, lines=lines, since_text=since, pattern=grep, start=start)


@app.command()
def history(
    name: Annotated[str | None, typer.Argument(help="Only this server's launches, with their stages.")] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", help="The newest N.", min=1)] = 20,
    json: Json = False,
) -> int:
    """Show the launches of the past: how long each took to start, what it took of memory, how it ended."""
    from tui.headless.history import history as show

    return show(name, limit=lines, as_json=json)


@app.command()
def chat(
    name: Name,
    prompt: Annotated[str | None, typer.Argument(help="What to ask; without it, standard input.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    json: Json = False,
) -> int:
    """Ask a server; the answer streams to standard output, its timings to standard error."""
    from backends.client import ensure_keeper
    from tui.headless.chat import chat as do_chat

    connection = ensure_keeper().connection(name)
    return do_chat(
        name, prompt, system=system, temperature=temperature, max_tokens=max_tokens, json=json, connection=connection
    )


@app.command(epilog="Exit codes: 0 it fits, if tightly; 1 it does not fit, or that cannot be told; 2–5 as for a start.")
def fit(
    ctx: typer.Context,
    profile: Annotated[str, typer.Argument(help="The profile's name, or the path of its file.")],
    gpus: Annotated[str | None, typer.Option(help="GPU indices or UUID prefixes (6,7), 'auto', or 'cpu'.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="An engine argument over the profile's.")] = None,
    json: Json = False,
) -> int:
    """Tell whether a profile fits, and into which GPUs, from the model's files: nothing is downloaded or started."""
    from tui.headless.fit import fit as tell

    chosen = None if gpus is None else tuple(part.strip() for part in gpus.split(",") if part.strip())
    intent = LaunchIntent(profile, chosen, sets=tuple(sets or ()))
    return tell(read_launchable(open_store(ctx.obj), profile), intent, json=json)


@app.command()
def diagnose(
    target: Annotated[str, typer.Argument(help="A log's file, or a server's name.")], json: Json = False
) -> int:
    """Tell why a server failed: the first root cause in its log (or any log of vLLM), with evidence and remedies."""
    from tui.headless.diagnose import diagnose as tell

    return tell(target, json=json)


@app.command()
def fix(
    ctx: typer.Context,
    name: Name,
    apply: Annotated[bool, typer.Option("--apply", help="Make the change, and start the server again.")] = False,
    remedy: Annotated[int | None, typer.Option(help="Which remedy of its card; by default the first.", min=1)] = None,
    wait: WaitS = None,
    json: Json = False,
) -> int:
    """Show what the remedy of a failed server changes in its profile; with --apply, change it and start again."""
    from tui.headless.fix import fix as do_fix
    from tui.headless.launch import Wishes

    if not apply and (json or wait is not None):
        raise UsageError("--wait and --json go with --apply")
    return do_fix(open_store(ctx.obj), name, apply=apply, number=remedy, wishes=Wishes(wait_s=wait, json=json))


@app.command()
def doctor(
    json: Json = False,
    python: Annotated[str | None, typer.Option(help="Look for engines in this interpreter.")] = None,
) -> int:
    """Check driver, NVML, engines, disk, limits and network; each problem comes with a remedy."""
    from tui.headless.doctor import doctor as examine

    return examine(json=json, python=python)


@app.command()
def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    older_than: Annotated[str | None, typer.Option("--older-than", help="Spare what is younger: 30d, 12h.")] = None,
    json: Json = False,
) -> int:
    """Remove old logs, states of servers that were forgotten, and what killed processes left; never a live server's."""
    from tui.headless.clean import clean as do_clean

    return do_clean(dry_run=dry_run, older_than=older_than, json=json)


@app.command(epilog="--readonly, --profile-dir and --simulate go before: gpubox --readonly web")
def web(
    ctx: typer.Context,
    port: Annotated[str, typer.Option(help="A port, or 'auto'.")] = "4787",
    host: Annotated[str, typer.Option(help="Where to listen; by default, only this machine gets in.")] = "127.0.0.1",
) -> int:
    """Serve the control center to a browser: prints a link that works once; each tab is a screen of its own."""
    from tui.headless.web import serve

    simulate = ctx.parent.params["simulate"] if ctx.parent else None
    return serve(host, _port(port) or 0, readonly=forbids(), profile_dir=ctx.obj, simulate=simulate)


@app.command(hidden=True)
def demo_run() -> int:
    """Start the demo server, ask it one question, and stop it (`make demo HEADLESS=1`)."""
    from tui.headless.demo import run_demo

    return run_demo()
