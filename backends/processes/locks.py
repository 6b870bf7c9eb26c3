"""The locks that a shim and its guard hold together while anything of their tree lives; standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

GRANT_LIMIT_S = 2.0
GRANT_LOOK_S = 0.02


def hold(path: str) -> int:
    """Lock a file (made with mode 0600) for this shim alone; raises OSError where another has it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(f"{path} is locked by another process") from None
    return fd


def hold_shared(path: str) -> int:
    """Hold a grant of the ledger beside the keeper; raises OSError.

    Who asks whether a grant is held locks its file for a moment, which is waited for.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    deadline = time.monotonic() + GRANT_LIMIT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(f"{path} is locked by another process") from None
            time.sleep(GRANT_LOOK_S)
        else:
            return fd


def take_over(path: str) -> int:
    """Hold a grant in place of the descriptors that the keeper handed down, lest an engine inherits them.

    Raises OSError. A grant that is handed down outlives a keeper that dies before the shim can hold it itself.
    """
    fd = hold_shared(path)
    file = os.fstat(fd)
    for other in map(int, os.listdir("/proc/self/fd")):
        if other != fd:
            with contextlib.suppress(OSError):  # the listing's own is gone already
                if os.path.samestat(os.fstat(other), file):
                    os.close(other)
    return fd
