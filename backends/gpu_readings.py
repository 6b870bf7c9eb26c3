"""What is read of a GPU: its figures, its processes, whose its memory is, and its faults; a part of `snapshots`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


@dataclass(frozen=True, slots=True)
class Missing:
    """A reading that could not be had, and why."""

    reason: str


NOT_WATCHED = Missing("the keeper hears of them, and nobody else does")


class Owner(StrEnum):
    """Whose memory on a GPU is."""

    SERVER = "server"
    RUN = "run"
    FOREIGN = "foreign"
    ORPHAN = "orphan"
    UNATTRIBUTED = "unattributed"


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU; `server` names the server of ours that it belongs to, or was left by.

    `start_ticks` tells it from any other process of that pid; None where it cannot be seen from here. `note` says what
    is odd about it.
    """

    pid: int
    command: str
    user: str
    memory_bytes: int | Missing
    kind: Literal["compute", "graphics"] = "compute"
    server: str | None = None
    owner: Owner = Owner.FOREIGN
    start_ticks: int | None = None
    note: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether a live server or run of ours has it; an orphan is nobody's to count on."""
        return self.owner in (Owner.SERVER, Owner.RUN)


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a GPU's memory in use, and whose it is: `who` names the server, or the user and the program."""

    owner: Owner
    who: str
    memory_bytes: int | Missing
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """What the machine's ledger grants of a GPU to a server; `memory_bytes` None is all of it.

    `ours` tells the servers of this keeper from those of other users or homes.
    """

    server: str
    user: str
    memory_bytes: int | None = None
    ours: bool = True


@dataclass(frozen=True, slots=True)
class EccErrors:
    """Errors of a GPU's memory since its driver was loaded: how many ECC corrected, and how many it could not."""

    corrected: int
    uncorrected: int


@dataclass(frozen=True, slots=True)
class Xid:
    """An error that the driver reported of a GPU: `count` times, one soon after the other, first at `at`."""

    at: float
    number: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at one moment; `refusal` says why it may not be assigned, `grants` to which servers it is assigned.

    `shares` are the parts of the memory in use, the largest first; they sum up to `memory_used_bytes`. `nvlink` and
    `same_node` are the UUIDs of the GPUs that it is linked to, and that hang on its NUMA node. `throttling` are the
    reasons for which its clocks are held down now, in words; `xids` the newest errors that the driver reported while
    it was watched, the newest last.
    """

    index: int
    uuid: str
    name: str
    memory_total_bytes: int | Missing
    memory_used_bytes: int | Missing
    memory_free_bytes: int | Missing
    utilization: float | Missing
    temperature_c: int | Missing
    power_w: float | Missing
    power_limit_w: float | Missing
    processes: tuple[GpuProcess, ...] | Missing
    mig: bool = False
    refusal: str | None = None
    grants: tuple[Grant, ...] = ()
    shares: tuple[Share, ...] = ()
    nvlink: tuple[str, ...] = ()
    same_node: tuple[str, ...] = ()
    ecc: EccErrors | Missing = Missing("not read")
    throttling: tuple[str, ...] | Missing = Missing("not read")
    xids: tuple[Xid, ...] | Missing = NOT_WATCHED

    @property
    def holder(self) -> str | None:
        """Which servers it is assigned to, those of other users with the user's name; None where it is free."""
        names = [grant.server if grant.ours else f"{grant.server} of {grant.user}" for grant in self.grants]
        return ", ".join(names) or None
