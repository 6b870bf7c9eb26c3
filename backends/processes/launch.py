"""Starts shims for the keeper."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.errors import StartFailedError
from backends.paths import private
from backends.processes.facts import is_alive, read_facts
from backends.processes.spec import write_json
from backends.snapshots import Missing

if TYPE_CHECKING:
    from backends.processes.spec import Spec

SHIM = Path(__file__).with_name("shim.py")
LINGER = Path("/var/lib/systemd/linger")
LAUNCH_LIMIT_S = 20.0
SCOPE_CHECK_LIMIT_S = 5.0
SCOPE = ("systemd-run", "--user", "--scope", "--quiet", "--collect", "--")
PASSED_ON = ("PATH", "TZ", "TZDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
"""All that the shim gets of our environment: the engine's own, which may hold keys, stands in the spec."""


def _environ() -> dict[str, str]:
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


@cache
def scope_prefix() -> tuple[str, ...]:
    """Return the command that puts a shim into a systemd scope of the user's own, empty where that would not serve.

    Where logind ends a session's processes at logout, only the user's manager spares them. But without lingering that
    manager itself ends with the last session, and takes its scopes along: then a plain detached process is safer.
    """
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
        if not (LINGER / user).exists() or not shutil.which(SCOPE[0]):
            return ()
        command = [*SCOPE, "true"]
        tried = subprocess.run(command, env=_environ(), capture_output=True, timeout=SCOPE_CHECK_LIMIT_S, check=False)
    except (KeyError, OSError, subprocess.TimeoutExpired):
        return ()
    return SCOPE if tried.returncode == 0 else ()


def launch(
    spec: Spec | Mapping[str, Any], folder: Path, python: str = sys.executable, *, inherited: Sequence[int] = ()
) -> None:
    """Write `spec` into `folder` (made with mode 0700) and start a shim for it; returns once its facts exist.

    That the engine itself runs is not said: the facts tell. `inherited` are descriptors that hold what the shim is to
    hold, so that it is held without a gap. Raises StartFailedError with the reason in one line.
    """
    path = private(folder) / "spec.json"
    name = spec["name"]
    try:
        private(Path(spec["log"]).parent)
        write_json(str(path), dict(spec))
        done = subprocess.run(
            [*scope_prefix(), python, "-I", "-P", "-S", str(SHIM), str(path)],
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=LAUNCH_LIMIT_S,
            check=False,
            pass_fds=inherited,
        )
    except subprocess.TimeoutExpired:
        facts = read_facts(Path(spec["facts"]))
        if not isinstance(facts, Missing) and is_alive(facts.shim):
            return
        raise StartFailedError(f"{name}: its shim said nothing for {LAUNCH_LIMIT_S:.0f} s") from None
    except OSError as error:
        raise StartFailedError(f"{name}: its shim cannot be started: {error}") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StartFailedError(f"{name}: {said[-1] if said else f'its shim ended with exit code {done.returncode}'}")
