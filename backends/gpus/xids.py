"""XIDs: the errors that the NVIDIA driver reports of a GPU; what they mean, and a watch that gathers them.

The numbers and their meanings are those of NVIDIA's list of XID errors.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

from backends.gpu_readings import Missing, Xid

log = logging.getLogger(__name__)

MEANINGS = {
    13: "graphics engine exception: a program did something illegal on the GPU, mostly a bug of the program",
    31: "memory page fault: a program used an address that is not its own, mostly a bug of the program",
    32: "corrupted push buffer: driver, PCIe or the program",
    38: "driver firmware error",
    43: "a program's work was stopped after an error of its own; the GPU goes on",
    45: "a program's work was cleaned up after an earlier error, or since it was killed",
    48: "double-bit ECC error: memory that cannot be corrected; the programs on it end, reset the GPU",
    61: "internal micro-controller breakpoint: reset the GPU",
    62: "internal micro-controller halt: reset the GPU",
    63: "a bad row of memory was noted down; it is replaced at the next reset of the GPU",
    64: "a bad row of memory could not be replaced: reset the GPU; if it comes again, have it exchanged",
    69: "graphics engine class error: mostly a bug of a program or of the driver",
    74: "NVLink error: look at the links (`nvidia-smi nvlink -e`); if it comes again, reset the GPUs",
    79: "the GPU fell off the bus: power, heat, PCIe or the board; reboot, and have it looked at",
    92: "many corrected ECC errors: its memory ages",
    94: "contained memory error: the program that used that memory ends, the others go on",
    95: "uncontained memory error: every program on the GPU is hit; reset it before it is used again",
    109: "context switch timeout: a program or the driver hangs",
    119: "the GPU's own processor (GSP) does not answer: reset the GPU, or reboot",
    120: "error of the GPU's own processor (GSP): reset the GPU, or reboot",
    121: "error of the link between CPU and GPU (C2C)",
    137: "NVLink fault of a program: it used memory of another GPU that is not its own",
    140: "unrecovered ECC error: reset the GPU",
    143: "the GPU could not be initialised: reset it, or reboot",
    154: "the driver asks for a recovery of the GPU: see `nvidia-smi -q`, 'GPU Recovery Action'",
}

KEPT = 8
"""How many of a GPU's newest are kept."""

AGAIN_S = 60.0
"""The same number again within so many seconds counts as the same."""

JOIN_S = 5.0


class WatchEndedError(Exception):
    """Nothing more can be waited for; the text says why."""


def meaning(number: int) -> str:
    """Say what an XID means, as far as it is one of the common ones."""
    return MEANINGS.get(number, "see NVIDIA's list of XID errors, and dmesg")


class XidEvents(Protocol):
    """Where XIDs come from."""

    def register(self, uuid: str) -> bool | Missing:
        """Begin to listen to a GPU; returns whether that worked, or Missing where it never will."""
        ...

    def wait(self) -> tuple[str, int] | None:
        """Block for a moment; return the UUID and the number of an XID, or None. Raises WatchEndedError."""
        ...

    def close(self) -> None:
        """Let go; called once nobody waits any more."""
        ...


class XidWatch:
    """Gathers the XIDs of the GPUs that it was asked about, in a thread of its own, until `close`."""

    def __init__(self, events: XidEvents, clock: Callable[[], float] = time.time) -> None:
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._listens: dict[str, Literal[True] | Missing] = {}
        self._seen: dict[str, tuple[Xid, ...]] = {}
        self._last_at: dict[tuple[str, int], float] = {}
        self._ended: Missing | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, uuid: str) -> tuple[Xid, ...] | Missing:
        """Return a GPU's newest XIDs, the newest last; Missing where none can be heard."""
        if uuid not in self._listens and (answer := self._events.register(uuid)):
            self._listens[uuid] = answer
            if answer is True and self._thread is None:
                # A daemon: a wait in the driver must not keep a process that is told to end.
                self._thread = threading.Thread(target=self._run, name="xids", daemon=True)
                self._thread.start()
        listens = self._listens.get(uuid, True)
        if isinstance(listens, Missing):
            return listens
        with self._lock:
            return self._seen.get(uuid) or self._ended or ()

    def close(self) -> None:
        """End the thread, and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_S)
            if self._thread.is_alive():
                log.warning("the driver does not return from waiting for XIDs")
                return
        self._events.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                happened = self._events.wait()
                if happened is not None:
                    self._note(*happened)
        except WatchEndedError as end:
            self._end(str(end))
        except Exception as bug:
            log.exception("watching for XIDs failed")
            self._end(f"watching for them failed: {bug!r}")

    def _end(self, reason: str) -> None:
        with self._lock:
            self._ended = Missing(reason)

    def _note(self, uuid: str, number: int) -> None:
        now = self._clock()
        with self._lock:
            seen, last_at = self._seen.get(uuid, ()), self._last_at.get((uuid, number))
            self._last_at[uuid, number] = now
            same = next((xid for xid in reversed(seen) if xid.number == number), None)
            if same is not None and last_at is not None and now - last_at < AGAIN_S:
                self._seen[uuid] = tuple(replace(x, count=x.count + 1) if x is same else x for x in seen)
            else:
                self._seen[uuid] = (*seen, Xid(now, number))[-KEPT:]
