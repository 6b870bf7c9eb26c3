"""A terminal that only reads: programs run in it for the benchmarks, and what they write and use is counted."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TICKS = os.sysconf("SC_CLK_TCK")
READ_BYTES = 65536
PATIENCE_S = 30.0
QUESTION, ANSWER = b"\x1b[?2026$p", b"\x1b[?2026;2$y"
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|P.*?\x1b\\|[ -/]*[0-~])", re.DOTALL)


class Terminal:
    """A program in a pseudo-terminal of `size` (columns, lines); all that it writes is read.

    `bytes_per_s` makes the line slow: no more than that is read. Nothing is answered, but on a slow line the question
    whether frames can be held back, as most terminals do. `text` is what was written, without escape codes.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], size: tuple[int, int], bytes_per_s: int = 0
    ) -> None:
        self.size = size
        self.bytes_per_s = bytes_per_s
        self.written_bytes = 0
        self.begun_at = 0.0
        self._command = list(command)
        self._environ = {**environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self._seen = threading.Condition()
        self._raw = bytearray()
        self._ended = False
        self._answered = self._forgotten = 0

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", self.size[1], self.size[0], 0, 0))
        self.begun_at = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdin=slave, stdout=slave, stderr=slave, env=self._environ, start_new_session=True
        )
        os.close(slave)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bytes_per_s = 0
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._thread.join(5)
        os.close(self._master)

    @property
    def pid(self) -> int:
        """The program's process."""
        return self._process.pid

    @property
    def text(self) -> str:
        """What has been written so far, without escape codes."""
        with self._seen:
            raw = bytes(self._raw)
        return _ESCAPES.sub("", codecs.decode(raw, "utf-8", "replace"))

    def forget(self) -> None:
        """Begin `text` anew."""
        with self._seen:
            self._forgotten += self._raw.count(QUESTION)
            self._raw.clear()

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._master, keys.encode())

    def wait_for(self, pattern: str, within_s: float = PATIENCE_S) -> float:
        """Wait until `pattern` has been written; returns the seconds since the program began, raises AssertionError."""
        wanted, deadline = re.compile(pattern), time.monotonic() + within_s
        while True:
            with self._seen:
                known = len(self._raw)
            at = time.monotonic()
            if wanted.search(self.text):
                return at - self.begun_at
            with self._seen:
                news = self._seen.wait_for(
                    lambda known=known: len(self._raw) != known or self._ended,  # type: ignore[misc]
                    max(0.0, deadline - time.monotonic()),
                )
            if not news or (self._ended and not wanted.search(self.text)):
                raise AssertionError(f"{self._command[0]} never wrote {pattern!r}; its last words: {self.text[-2000:]}")

    def _answer(self) -> None:
        asked = self._raw.count(QUESTION) + self._forgotten
        while self._answered < asked:
            self._answered += 1
            os.write(self._master, ANSWER)

    def wait_for_end(self, within_s: float = PATIENCE_S) -> None:
        """Wait until the program has ended; raises subprocess.TimeoutExpired."""
        self._process.wait(within_s)

    def _read(self) -> None:
        while True:
            with contextlib.suppress(InterruptedError):
                select.select([self._master], [], [])
            slow = self.bytes_per_s
            try:
                data = os.read(self._master, max(1, slow // 20) if slow else READ_BYTES)
            except OSError:
                data = b""
            with self._seen:
                self.written_bytes += len(data)
                self._raw += data
                self._ended = not data
                self._seen.notify_all()
            if not data:
                return
            if slow:
                time.sleep(len(data) / slow)
                self._answer()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, its threads' included; 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mib(pid: int) -> float:
    """Return the resident memory of a process; 0 where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGESIZE") / 2**20
