"""The log's writer: a thread behind a bounded queue, so that a slow, full or hung disk never blocks the engine."""

from __future__ import annotations

import os
import threading
import time
from collections import deque

from backends.processes.lines import Stamp
from backends.processes.spec import write_json

QUEUE_BYTES = 8 << 20
PATIENCE_S = 0.2
"""How long one full queue may hold the engine up before lines are dropped: a healthy disk catches up within it."""
RETRY_S = 0.5
PROGRESS_EVERY_S = 0.25
TOO_SLOW = "the disk is too slow"


class Sink:
    """Takes blocks of whole lines for a log that rotates by size, and progress for a file of its own.

    `dropped_lines` counts what found no room; the log says so in a line of gpubox's own once it can be written again.
    """

    def __init__(self, path: str, max_bytes: int, parts: int, progress_path: str) -> None:
        """Open the log (mode 0600) for appending; raises OSError."""
        self.dropped_lines = 0
        self._path, self._max_bytes, self._parts, self._progress_path = path, max_bytes, parts, progress_path
        self._fd = -1
        self._size = 0
        self._open()
        self._stamp = Stamp()
        self._changed = threading.Condition()
        self._blocks: deque[bytes] = deque()
        self._queued = 0
        self._untold = 0
        self._why = TOO_SLOW
        self._failing: str | None = None
        self._progress: tuple[float, str] | None = None
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def put(self, block: bytes) -> None:
        """Queue whole lines; where there is no room, drop and count them."""
        if not block:
            return
        with self._changed:
            if self._full(block) and not self._untold and not self._failing:
                self._changed.wait_for(lambda: not self._full(block), PATIENCE_S)
            # Once dropping, go on until half the queue is free, or every block would cost the engine its own wait.
            if self._full(block) or (self._untold and self._queued > QUEUE_BYTES // 2):
                count = block.count(b"\n")
                self._untold += count
                self.dropped_lines += count
                self._why = self._failing or TOO_SLOW
                return
            self._tell_dropped()
            self._append(block)

    def say(self, text: str) -> None:
        """Queue a line of gpubox's own, room or not."""
        with self._changed:
            self._tell_dropped()
            self._append(f"{self._stamp(time.time())}gpubox: {text}\n".encode("utf-8", "replace"))

    def show(self, text: str) -> None:
        """Note the newest progress line."""
        with self._changed:
            if self._progress is None:
                self._changed.notify_all()
            self._progress = (time.time(), text)

    def close(self, timeout_s: float) -> None:
        """Write what is queued and end; after `timeout_s` give up and count the rest as dropped."""
        with self._changed:
            self._deadline = time.monotonic() + timeout_s
            self._tell_dropped()
            self._changed.notify_all()
        self._thread.join(timeout_s + RETRY_S)
        with self._changed:
            self.dropped_lines += sum(block.count(b"\n") for block in self._blocks)

    def _full(self, block: bytes) -> bool:
        return self._queued + len(block) > QUEUE_BYTES and bool(self._blocks)

    def _append(self, block: bytes) -> None:
        self._blocks.append(block)
        self._queued += len(block)
        self._changed.notify_all()

    def _tell_dropped(self) -> None:
        if self._untold:
            plural = "" if self._untold == 1 else "s"
            text = f"{self._untold} line{plural} dropped: {self._why}"
            self._untold = 0
            self.say(text)

    def _run(self) -> None:
        progress_at = 0.0
        while True:
            with self._changed:
                wait_s = None
                if self._progress is not None:
                    wait_s = max(0.0, progress_at + PROGRESS_EVERY_S - time.monotonic())
                if not self._blocks and self._deadline is None and wait_s != 0.0:
                    self._changed.wait(wait_s)
                block = self._blocks[0] if self._blocks else b""
                closing = self._deadline is not None
                progress = None
                if self._progress and (closing or time.monotonic() >= progress_at + PROGRESS_EVERY_S):
                    progress, self._progress = self._progress, None
            if progress:
                progress_at = time.monotonic()
                self._write_progress(*progress)
            if block and not self._write(block):
                return
            with self._changed:
                if block:
                    self._blocks.popleft()
                    self._queued -= len(block)
                    self._changed.notify_all()
                if closing and not self._blocks:
                    return

    def _write_progress(self, at: float, text: str) -> None:
        try:
            write_json(self._progress_path, {"at": at, "text": text}, durable=False)
        except OSError:
            return  # The next one may find room; progress is not worth a retry.

    def _write(self, block: bytes) -> bool:
        """Write a block, however often it takes; False when the log is closed before it is written."""
        rest = memoryview(block)
        head = rest[:0]
        while rest or head:
            try:
                if not head:
                    end = self._fitting(rest)
                    if not end:
                        self._rotate()
                        continue
                    head, rest = rest[:end], rest[end:]
                written = os.write(self._fd, head)
                self._size += written
                head = head[written:]
                self._failing = None
            except OSError as error:
                with self._changed:
                    self._failing = error.strerror or str(error)
                    if self._deadline is not None and time.monotonic() > self._deadline:
                        return False
                    self._changed.wait(RETRY_S)
        return True

    def _fitting(self, rest: memoryview) -> int:
        """Return how many bytes of whole lines this part of the log still takes; 0 where the next must be begun."""
        room = self._max_bytes - self._size
        if len(rest) <= room:
            return len(rest)
        end = bytes(rest[: max(0, room)]).rfind(b"\n") + 1
        # A line longer than a whole part gets a part to itself.
        return end if end or self._size else bytes(rest).find(b"\n") + 1

    def _rotate(self) -> None:
        # Where an earlier try got as far as the renaming, only the new part is missing.
        if os.path.exists(self._path):
            for number in range(self._parts, 0, -1):
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                if os.path.exists(newer):
                    os.replace(newer, f"{self._path}.{number}")
            if not self._parts:
                os.unlink(self._path)
        full = self._fd
        self._open()
        os.close(full)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size
