"""Reading the weights of the model that comes next into the page cache, while the one before it still gives way."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from backends.keeper.levels import HOST_MARGIN_BYTES

log = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20
MEMINFO = Path("/proc/meminfo")


class ReadAhead:
    """A thread that asks the kernel to read files, as long as host memory has room for them; `end` stops it."""

    def __init__(self) -> None:
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, files: Sequence[Path]) -> None:
        """Read these files, in this order; returns at once."""
        self._thread = threading.Thread(target=self._read, args=(files,), name="read-ahead", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Read no further."""
        self._is_over.set()

    def _read(self, files: Sequence[Path]) -> None:
        try:
            left = sum(path.stat().st_size for path in files)
            for path in files:
                # What is in the page cache counts as available, too: a sleeper that pins memory meanwhile takes it.
                if available_bytes() < left + HOST_MARGIN_BYTES:
                    return
                left -= self._read_file(path)
        except OSError as problem:
            log.info("weights are not read ahead: %s", problem)

    def _read_file(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, CHUNK_BYTES):
                if self._is_over.is_set():
                    break
                os.posix_fadvise(descriptor, offset, CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
            return size
        finally:
            os.close(descriptor)


def available_bytes() -> int:
    """Return how much host memory is available, as the kernel tells it; raises OSError."""
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise OSError(f"{MEMINFO} tells no MemAvailable")
