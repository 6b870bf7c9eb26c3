"""The exceptions that gpubox raises on purpose; each reaches the user as one line and what to do next.

GpuboxError                  exit code 1
├── UsageError               2   the request itself makes no sense
├── ProfileError             3   a profile cannot be read, or does not say what is needed
├── NoSuchGpuError           4   a GPU was named that this box does not have, or that may not be assigned
├── GpuBusyError             5   the GPU is held by a server, or by somebody else's process
├── StartFailedError         6   the engine ended, or could not be started at all
├── WaitOverError            7   `--wait` is over; the server keeps starting
├── KeeperError              8   the keeper cannot be reached or started
├── NoSuchServerError        9   no server of that name
└── ConflictError           10   the server is in a state in which the request is refused
    ├── SleepFailedError         it could not be put to sleep; it serves as before, or has ended
    └── WakeFailedError          it could not be woken; it sleeps as before, or has ended
"""

from __future__ import annotations

from typing import ClassVar


class GpuboxError(Exception):
    """One line that says what is wrong and where, and a hint that says what to do next."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(GpuboxError):
    """The request itself makes no sense."""

    code = "usage"
    exit_code = 2


class ProfileError(GpuboxError):
    """A profile cannot be read, or does not say what is needed."""

    code = "profile"
    exit_code = 3


class NoSuchGpuError(GpuboxError):
    """A GPU was named that this box does not have, or that may not be assigned."""

    code = "no-such-gpu"
    exit_code = 4


class GpuBusyError(GpuboxError):
    """The GPU is held by a server, or by somebody else's process."""

    code = "gpu-busy"
    exit_code = 5


class StartFailedError(GpuboxError):
    """The engine ended, or could not be started at all."""

    code = "start-failed"
    exit_code = 6


class WaitOverError(GpuboxError):
    """The wait that the user asked for is over; the server keeps starting."""

    code = "wait-over"
    exit_code = 7


class KeeperError(GpuboxError):
    """The keeper cannot be reached or started."""

    code = "keeper"
    exit_code = 8


class NoSuchServerError(GpuboxError):
    """No server of that name."""

    code = "no-such-server"
    exit_code = 9


class ConflictError(GpuboxError):
    """The server is in a state in which the request is refused."""

    code = "conflict"
    exit_code = 10


class SleepFailedError(ConflictError):
    """A server could not be put to sleep: it serves as before, unless it has ended."""

    code = "sleep-failed"


class WakeFailedError(ConflictError):
    """A server could not be woken: it sleeps as before where there was no room; half awake it was ended."""

    code = "wake-failed"


_KINDS: dict[str, type[GpuboxError]] = {
    kind.code: kind
    for kind in (
        GpuboxError,
        UsageError,
        ProfileError,
        NoSuchGpuError,
        GpuBusyError,
        StartFailedError,
        WaitOverError,
        KeeperError,
        NoSuchServerError,
        ConflictError,
        SleepFailedError,
        WakeFailedError,
    )
}


def from_code(code: str, message: str, hint: str = "") -> GpuboxError:
    """Rebuild an error that crossed the keeper's socket as its code, message and hint."""
    return _KINDS.get(code, GpuboxError)(message, hint)
