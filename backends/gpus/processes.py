"""Who a process is, for the lists of those that hold GPU memory."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from functools import lru_cache

import psutil

COMMAND_LIMIT = 200
ANOTHER_CONTAINER = "hidden (another container)"
ANOTHER_USER = "hidden (another user)"
UNKNOWN_USER = "?"

_SECRET_OPTION = re.compile(r"(--?(?:[\w-]*[-_])?(?:key|token|password|secret))(=.*)?", re.IGNORECASE | re.DOTALL)


def describe(pid: int) -> tuple[str, str]:
    """Return the command line (secrets masked, at most COMMAND_LIMIT characters) and the user of a process.

    NVML may tell pids of the host or of other containers, which do not exist here: those are called hidden.
    """
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            user = _user_name(process.uids().real)
            try:
                words = process.cmdline()
            except (psutil.AccessDenied, psutil.ZombieProcess):
                words = []
            command = command_line(words) or process.name()
    except psutil.Error:
        return (ANOTHER_USER if _exists(pid) else ANOTHER_CONTAINER), UNKNOWN_USER
    return command[:COMMAND_LIMIT], user


def command_line(words: Sequence[str]) -> str:
    """Join a command line, with `***` in place of the values of options such as `--api-key`."""
    shown: list[str] = []
    masking = False
    for word in words:
        option = _SECRET_OPTION.fullmatch(word)
        if option:
            shown.append(f"{option[1]}=***" if option[2] else option[1])
            masking = option[2] is None
        elif word.startswith("-"):
            shown.append(word)
            masking = False
        else:
            shown.append("***" if masking else word)
    return " ".join(shown).strip()


def _exists(pid: int) -> bool:
    """Tell whether there is such a process although /proc does not show it (`hidepid`)."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


@lru_cache(maxsize=256)
def _user_name(uid: int) -> str:
    """Names come from LDAP on some boxes, too slowly to ask every second."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
