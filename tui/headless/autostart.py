"""`gpubox up` and `gpubox autostart …`: sets of servers, now and after a reboot."""

from __future__ import annotations

import asyncio
import json as json_format
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from backends.errors import GpuboxError, KeeperError, StartFailedError, WaitOverError
from tui.headless.output import complain, say

if TYPE_CHECKING:
    from backends.sets import Member
    from backends.snapshots import Server

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Profiles = Annotated[list[str], typer.Argument(help="Names of profiles.")]


def up(names: Sequence[str], wait_s: float | None) -> int:
    """Start what does not run of the named sets (default: `default`), and await that all is ready.

    A line for each server; returns 0, or the highest exit code of those that are not ready.
    """
    from backends.client import ensure_keeper
    from backends.sets import DEFAULT, members_of

    members = members_of(names or [DEFAULT])
    if not members:
        say("there is nothing in it to start")
        return 0
    begun = time.monotonic()
    known = {server.name: server for server in ensure_keeper().snapshot().servers}
    codes, waiting = [], []
    for member in members:
        server = known.get(member.server)
        if server is not None and server.is_live:
            waiting.append((server, True))
            continue
        try:
            waiting.append((_start(member), False))
        except GpuboxError as problem:
            codes.append(_complain(member.server, problem))
    return max([*codes, *asyncio.run(_await_all(waiting, begun, wait_s))], default=0)


def _start(member: Member) -> Server:
    from backends.client import ensure_keeper
    from tui.launching import LaunchIntent, open_store, read_launchable

    intent = LaunchIntent(member.profile, member.gpus, member.port, name=member.name)
    return ensure_keeper().start(read_launchable(open_store(None), member.profile).request(intent))


def _complain(name: str, problem: GpuboxError) -> int:
    if not problem.message.startswith(f"{name}: "):
        problem.message = f"{name}: {problem.message}"
    return complain(problem)


async def _await_all(servers: Sequence[tuple[Server, bool]], begun: float, wait_s: float | None) -> list[int]:
    left_s = None if wait_s is None else max(0.0, wait_s - (time.monotonic() - begun))
    return list(await asyncio.gather(*(_await_ready(server, ran, begun, left_s) for server, ran in servers)))


async def _await_ready(server: Server, ran: bool, begun: float, wait_s: float | None) -> int:
    """Await one server and say its line; `ran` says that it did so before. Returns its exit code."""
    name = server.name
    try:
        async with asyncio.timeout(wait_s):
            server = await _up(server)
    except TimeoutError:
        problem: GpuboxError = WaitOverError(f"is not ready after {wait_s:g} s; it keeps starting", "gpubox status")
        return _complain(name, problem)
    except (StartFailedError, KeeperError) as failed:
        return _complain(name, failed)
    how = f"{server.state} already" if ran else f"{server.state} after {time.monotonic() - begun:.0f} s"
    say(f"{name}: {how}, {server.address}/v1")
    return 0


async def _up(server: Server) -> Server:
    """Return a server once it is ready or asleep; raises StartFailedError where it ends, KeeperError."""
    from backends.client import AsyncKeeper
    from backends.snapshots import ServerState
    from tui.headless.launch import states

    async for newer in states(AsyncKeeper(), server.name):
        if newer.state in (ServerState.READY, ServerState.SLEEPING):
            return newer
        if newer.state in (ServerState.FAILED, ServerState.LOST):
            raise StartFailedError(f"failed: {newer.cause}", f"log: {newer.log_path}")
        if newer.state is ServerState.STOPPED:
            raise StartFailedError("was stopped before it was ready")
    raise StartFailedError("the keeper told nothing more of it")


@app.command("show")
def show(json: Json = False) -> int:
    """Show what starts after a reboot, and how."""
    from backends.autostart import lingers, unit_path
    from backends.sets import DEFAULT, read_sets

    sets = read_sets()
    installed = unit_path().exists()
    if json:
        named = {name: [asdict(member) for member in members] for name, members in sets.items()}
        found = {"sets": named, "unit": str(unit_path()), "installed": installed, "lingers": lingers()}
        print(json_format.dumps(found, indent=2))
        return 0
    for name, members in sets.items():
        print(f"{name}: {', '.join(_shown(member) for member in members) or 'nothing'}")
    if not sets.get(DEFAULT):
        say("nothing starts after a reboot; gpubox autostart add PROFILE changes that")
    elif installed:
        say(f"{DEFAULT} starts with the {'machine' if lingers() else 'first login'} ({unit_path()})")
        _advise_lingering()
    else:
        say("no unit is installed; gpubox autostart install changes that")
    return 0


@app.command("add")
def add(names: Profiles) -> int:
    """Have profiles start after a reboot."""
    from backends.sets import change_default
    from tui.launching import open_store, read_launchable

    for name in names:
        read_launchable(open_store(None), name)
    _say_default(change_default(add=names))
    return 0


@app.command("remove")
def remove(names: Profiles) -> int:
    """Have profiles no longer start after a reboot."""
    from backends.sets import change_default

    _say_default(change_default(remove=names))
    return 0


def _say_default(members: Sequence[Member]) -> None:
    from backends.autostart import unit_path

    say(f"after a reboot: {', '.join(_shown(member) for member in members) or 'nothing'}")
    if members and not unit_path().exists():
        say("  → gpubox autostart install")


def _shown(member: Member) -> str:
    name = member.profile if member.server == member.profile else f"{member.server} ({member.profile})"
    return name + (f" on {','.join(member.gpus)}" if member.gpus else "")


@app.command("install")
def install() -> int:
    """Have the set `default` start with the machine: by a unit of your own systemd, else by a line for cron."""
    from backends import autostart, paths

    if not autostart.has_user_manager():
        paths.private(paths.state_dir())  # for the line's output
        say("no systemd of yours runs here; put this line into `crontab -e`:")
        print(autostart.cron_line(autostart.command_line(), os.environ))
        return 0
    autostart.install()
    say(f"installed {autostart.unit_path()}; try it: systemctl --user start {autostart.UNIT}")
    _advise_lingering()
    return 0


def _advise_lingering() -> None:
    from backends.autostart import lingers, user_name

    if not lingers():
        say(f"  → to start with the machine, before anybody logs in: loginctl enable-linger {shlex.quote(user_name())}")


@app.command("uninstall")
def uninstall() -> int:
    """Start nothing after a reboot any more; servers that run go on."""
    from backends.autostart import uninstall as do_uninstall

    say("removed the unit; servers that run go on" if do_uninstall() else "no unit is installed")
    return 0
