"""Shared-memory files that a process tree leaves behind when it is killed, removed once nobody else uses them.

A file belongs to the tree only if a process of the tree was seen to have it mapped or open, and if it was made by this
user since the launch. A look costs a walk through /proc, so it is taken when the kernel tells that such a file was made
and before the tree is killed, never on a timer. It is taken in a thread that may be left behind: reading the maps of a
process that hangs in a driver hangs too, and must not keep its tree from being killed.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading

from backends.processes import procfs

FOLDER = "/dev/shm"
PREFIXES = ("psm_", "sem.mp-", "sem.loky-")
"""Names that Python's multiprocessing gives to shared memory and semaphores, and joblib's loky to semaphores."""

LOOK_LIMIT_S = 1.0

IN_CREATE = 0x100
IN_MOVED_TO = 0x80
_EVENT = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    FileId = tuple[int, int]


def used_by(pid: int) -> set[FileId]:
    """Return `(device, inode)` of the files in /dev/shm that a process has mapped or open; may it be read at all."""
    found: set[FileId] = set()
    folder = FOLDER.encode() + b"/"
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                if folder in line:
                    device, inode = line.split(None, 5)[3:5]
                    major, minor = device.split(b":")
                    found.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    except OSError:
        pass
    try:
        handles = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for handle in handles:
        link = f"/proc/{pid}/fd/{handle}"
        try:
            if os.readlink(link).startswith(FOLDER + "/"):
                status = os.stat(link)
                found.add((status.st_dev, status.st_ino))
        except OSError:
            continue
    return found


class SharedMemory:
    """The shared-memory files of one process tree; `fd` is readable when one may have been made (-1: never)."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._seen: set[FileId] = set()
        self._found: set[FileId] = set()
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd >= 0 and _libc.inotify_add_watch(self.fd, FOLDER.encode(), IN_CREATE | IN_MOVED_TO) < 0:
            os.close(self.fd)
            self.fd = -1

    def made(self) -> bool:
        """Return whether a file was made since the last call that a look is worth."""
        worth = False
        while True:
            try:
                events = os.read(self.fd, 65536)
            except BlockingIOError:
                return worth
            at = 0
            while at < len(events):
                length = _EVENT.unpack_from(events, at)[3]
                at += _EVENT.size
                worth = worth or events[at : at + length].startswith(tuple(p.encode() for p in PREFIXES))
                at += length

    def look(self, root: int) -> None:
        """Note which of the files the descendants of `root` use."""
        if self._files():
            self._used_by_any(pid for pid, _ in procfs.descendants(root))
            self._seen |= self._found

    def clean(self) -> int:
        """Remove the dead tree's files that no living process uses; return how many were removed."""
        left = {identity: name for identity, name in self._files().items() if identity in self._seen}
        if not left or not self._used_by_any(procfs.pids()):
            return 0
        left = {identity: name for identity, name in left.items() if identity not in self._found}
        removed = 0
        for name in left.values():
            try:
                os.unlink(f"{FOLDER}/{name}")
                removed += 1
            except OSError:
                continue
        return removed

    def _used_by_any(self, pids: Iterable[int]) -> bool:
        """Gather what these processes use into `_found`; return whether that came to an end in time."""
        found = self._found = set()

        def gather() -> None:
            for pid in pids:
                found.update(used_by(pid))

        gathering = threading.Thread(target=gather, daemon=True)
        gathering.start()
        gathering.join(LOOK_LIMIT_S)
        return not gathering.is_alive()

    def _files(self) -> dict[FileId, str]:
        """Return this user's files that were made since the launch, by `(device, inode)`."""
        files: dict[FileId, str] = {}
        try:
            entries = list(os.scandir(FOLDER))
        except OSError:
            return files
        for entry in entries:
            if not entry.name.startswith(PREFIXES):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            # tmpfs stamps with the coarse clock, which may lag by a tick.
            if status.st_uid == os.geteuid() and status.st_ctime >= self._since - 0.1:
                files[(status.st_dev, status.st_ino)] = entry.name
        return files
