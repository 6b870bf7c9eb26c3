"""What the bridge tells the app; a newer state replaces one that is still waiting, events are never dropped."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from backends.errors import GpuboxError
from backends.snapshots import Event, Snapshot
from backends.switches import Switch


@dataclass(frozen=True, slots=True)
class KeeperTrouble:
    """Why the keeper cannot be heard, and the Unix time at which it is asked again."""

    problem: GpuboxError
    retry_at: float


class SnapshotChanged(Message):
    """The newest state of box and servers."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        """Let the newest state overtake the ones still in the queue: each holds everything."""
        return isinstance(message, SnapshotChanged)


class Happened(Message):
    """An event of a server or the box; never coalesced."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        self.event = event


class SwitchEnded(Message):
    """A switch is over; its outcome is in it."""

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch


class KeeperLost(Message):
    """The keeper's stream ended, or could not be opened."""

    def __init__(self, trouble: KeeperTrouble) -> None:
        super().__init__()
        self.trouble = trouble
