"""What brings a set of servers up after a reboot: a unit of the user's own systemd, or a line for cron."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import platformdirs

from backends import paths
from backends.errors import GpuboxError
from backends.sets import DEFAULT, write_whole

UNIT = "gpubox.service"
LINGER = Path("/var/lib/systemd/linger")
SYSTEMCTL_LIMIT_S = 30.0
HANDED_ON = (
    "PATH",
    "PYTHONPATH",
    "GPUBOX_HOME",
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
)
"""What of the environment of `install` the start after a reboot gets: where programs, gpubox's files and models are."""


def command_line() -> list[str]:
    """Return the command that brings the set up; in full, since nothing is on the path after a reboot."""
    return [sys.executable, "-P", "-m", "tui", "up", DEFAULT]


def unit_path() -> Path:
    """Return where the user's systemd looks for the unit."""
    return platformdirs.user_config_path("systemd") / "user" / UNIT


def unit_text(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the unit: it starts the set once, and stopping it leaves keeper and servers alone."""
    lines = [
        "[Unit]",
        "Description=The model servers that gpubox starts after a reboot",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
        "# Large models take long to load, and a keeper that this starts must outlive it.",
        "TimeoutStartSec=infinity",
        "KillMode=process",
        *(f"Environment={_quoted(f'{name}={environ[name]}')}" for name in HANDED_ON if environ.get(name)),
        # A dollar sign would be expanded in a command, but not in an environment.
        "ExecStart=" + " ".join(_quoted(word).replace("$", "$$") for word in command),
        "",
        "[Install]",
        "WantedBy=default.target",
    ]
    return "\n".join(lines) + "\n"


def cron_line(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the line for `crontab -e` that does the same without systemd."""
    given = [f"{name}={environ[name]}" for name in HANDED_ON if environ.get(name)]
    log = shlex.quote(str(paths.state_dir() / "autostart.log"))
    line = f"@reboot env {shlex.join([*given, *command])} >{log} 2>&1"
    # cron turns a bare percent sign into the end of the line.
    return line.replace("%", r"\%")


def has_user_manager() -> bool:
    """Whether a systemd of this user's own runs."""
    return _systemctl("show-environment") is None


def lingers() -> bool:
    """Whether the user's systemd starts with the machine, rather than with the first login."""
    return (LINGER / user_name()).exists()


def user_name() -> str:
    """Return the user's login name; the number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def install() -> None:
    """Write the unit and enable it, so that it runs with the next start of the user's systemd; raises GpuboxError."""
    path = unit_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, unit_text(command_line(), os.environ))
    for arguments in (("daemon-reload",), ("enable", UNIT)):
        if problem := _systemctl(*arguments):
            raise GpuboxError(f"systemctl --user {' '.join(arguments)}: {problem}", f"the unit is {path}")


def uninstall() -> bool:
    """Disable and remove the unit; returns whether there was one. Servers that run go on."""
    path = unit_path()
    if not path.exists():
        return False
    _systemctl("disable", UNIT)
    path.unlink()
    _systemctl("daemon-reload")
    return True


def _systemctl(*arguments: str) -> str | None:
    """Ask the user's systemd; returns what is wrong, None where nothing is."""
    program = shutil.which("systemctl")
    if program is None:
        return "there is no systemctl"
    try:
        done = subprocess.run(
            [program, "--user", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SYSTEMCTL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        return str(problem)
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"


def _quoted(word: str) -> str:
    """Quote for a systemd unit, in which a percent sign begins a specifier."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
