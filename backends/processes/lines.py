"""Raw output of a program → stamped lines of a log: progress bars collapsed, control characters gone, memory bounded.

A line rewritten by carriage returns is progress: only its newest state is kept, and reaches the log when it ends. Bars
below each other (tqdm moves down by line feeds and up by an escape sequence) do not end each other's lines.
"""

from __future__ import annotations

import re
import time

LINE_LIMIT = 65536
"""Longer lines are cut into pieces of at most this many bytes; each piece but the first starts with '…'."""

HOLD_S = 0.25
"""How long the end of a progress line is kept back, as the cursor may move up into it again."""

HELD_LIMIT = 64

_CONTROL = re.compile("[\x00-\x06\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9a\x9c-\x9f\u2028\u2029]")
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_ESCAPE = re.compile(
    "(?:\x1b\\[|\x9b)([0-?]*)[ -/]*([@-~])"  # CSI: colours, motion
    "|\x1b\\][^\x07\x1b\n]*(?:\x07|\x1b\\\\)?"  # OSC: titles, links
    "|\x1b[PX^_][^\x1b\n]*(?:\x1b\\\\)?"  # DCS and other strings
    "|\x1b[ -/]*[0-~]?"
    "|\x9b"
)
_UP = "\x0b"
_MOTION = re.compile(f"([\n\r{_UP}])")


def _motion(match: re.Match[str]) -> str:
    """Keep of an escape sequence only what moves the cursor up or to the line's start."""
    count, kind = match.group(1), match.group(2)
    if kind in ("A", "F"):
        return _UP * min(int(count) if count and count.isdigit() else 1, HELD_LIMIT)
    return "\r" if kind == "G" and count in ("", "1") else ""


def clean(raw: bytes) -> str:
    """Decode output, keeping of control characters only tab, line feed, carriage return, and cursor-up as `_UP`."""
    text = raw.decode("utf-8", "replace")
    text = _CONTROL.sub("", text)
    if "\x1b" in text or "\x9b" in text:
        text = _ESCAPE.sub(_motion, text)
    # A bell may end an escape sequence, so it goes last.
    return text.replace("\x07", "")


class Stamp:
    """RFC 3339 time stamps with milliseconds and the local offset, 29 characters and a space."""

    def __init__(self) -> None:
        self._second = -1
        self._head = self._tail = ""

    def __call__(self, now: float) -> str:
        """Return the stamp of a Unix time."""
        second = int(now)
        if second != self._second:
            local = time.localtime(second)
            minutes = local.tm_gmtoff // 60
            sign, minutes = ("-", -minutes) if minutes < 0 else ("+", minutes)
            self._second = second
            self._head = time.strftime("%Y-%m-%dT%H:%M:%S.", local)
            self._tail = f"{sign}{minutes // 60:02d}:{minutes % 60:02d} "
        return f"{self._head}{int((now - second) * 1000):03d}{self._tail}"


class Lines:
    """Turns what one program writes into blocks of stamped lines.

    `progress` is the newest state of a rewritten line, None until there was one.
    """

    def __init__(self, drop_lines_with: str) -> None:
        self.progress: str | None = None
        self._drop = drop_lines_with
        self._drop_bytes = drop_lines_with.encode()
        self._stamp = Stamp()
        self._raw = b""
        self._row = ""
        self._rewritten = False
        self._returned = False
        self._cut_off = False
        self._held: list[str] = []
        self._held_since = self._now = 0.0

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take the next output and return the lines that it completes, stamped with `now` (Unix seconds)."""
        ready: list[str] = []
        self._now = now
        cut_off, self._cut_off = self._cut_off, len(chunk) >= LINE_LIMIT
        if self._returned and self._raw and not cut_off:
            chunk = self._intruders(chunk, ready)
        raw = self._raw + chunk
        while (cut := self._cut(raw)) > 0:
            self._take(clean(raw[:cut]) + "\n", ready)
            self._row = "…"
            raw = raw[cut:]
        end = max(raw.rfind(b"\n"), raw.rfind(b"\r")) + 1
        whole, self._raw = raw[:end], raw[end:]
        if not ready and self._plain and whole.isascii() and not _CONTROL_BYTES.search(whole):
            if not whole:
                return b""
            if not self._drop_bytes or self._drop_bytes not in whole:
                prefix = self._stamp(now).encode()
                return prefix + whole[:-1].replace(b"\n", b"\n" + prefix) + b"\n"
        self._take(clean(whole), ready)
        if self._returned and self._raw:
            self._show(clean(self._raw).replace(_UP, ""))
        if self._held and now - self._held_since >= HOLD_S:
            self._release(ready)
        return self._stamped(ready, now)

    def due(self, now: float) -> float | None:
        """Return in how many seconds `settle` has something to give, None if there is nothing."""
        return max(0.0, self._held_since + HOLD_S - now) if self._held else None

    def settle(self, now: float) -> bytes:
        """Return the held progress lines, stamped: no more output came that would have moved back into them."""
        ready: list[str] = []
        self._release(ready)
        return self._stamped(ready, now)

    def finish(self, now: float) -> bytes:
        """Return all that is left, stamped: the output is over."""
        ready: list[str] = []
        if self._raw:
            self._take(clean(self._raw), ready)
            self._raw = b""
        self._release(ready)
        if self._row.strip():
            ready.append(self._row.rstrip())
        self._row, self._rewritten, self._returned = "", False, False
        return self._stamped(ready, now)

    @property
    def _plain(self) -> bool:
        return not (self._row or self._returned or self._rewritten or self._held)

    @staticmethod
    def _cut(raw: bytes) -> int:
        """Return where the first line must be cut as it is too long, 0 if it need not be."""
        if len(raw) <= LINE_LIMIT or b"\n" in raw[:LINE_LIMIT] or b"\r" in raw[:LINE_LIMIT]:
            return 0
        cut = LINE_LIMIT
        while raw[cut] & 0xC0 == 0x80 and cut > LINE_LIMIT - 4:
            cut -= 1
        escape = raw.rfind(b"\x1b", cut - 32, cut)
        return escape if escape > 0 else cut

    def _intruders(self, chunk: bytes, ready: list[str]) -> bytes:
        """Take whole lines that another process wrote while a progress line stood open; return the rest of the chunk.

        What is written at once is read at once, unless so much is there that the reading is cut off. So text that comes
        after an open progress line and goes on to its own line feed is not that line's.
        """
        while chunk and chunk[0] not in b"\r\n\x1b":
            end = chunk.find(b"\n")
            if end < 0 or 0 <= chunk.find(b"\r") < end - 1:
                break
            self._release(ready)
            ready.extend(clean(chunk[:end]).replace(_UP, "").rstrip("\r").split("\r")[-1:])
            chunk = chunk[end + 1 :]
        return chunk

    def _take(self, text: str, ready: list[str]) -> None:
        if self._plain and "\r" not in text and _UP not in text:
            lines = text.split("\n")
            self._row = lines.pop()
            ready.extend(lines)
            return
        for part in _MOTION.split(text):
            if part == "\n":
                self._end_row(ready)
            elif part == "\r":
                self._returned = True
            elif part == _UP:
                self._row = self._held.pop() if self._held else ""
                self._rewritten = self._returned = True
            elif part:
                if self._returned:
                    self._row, self._rewritten, self._returned = part, True, False
                else:
                    self._row += part
                if self._rewritten:
                    self._show(self._row)

    def _show(self, text: str) -> None:
        if text.strip():
            self.progress = text.strip()

    def _end_row(self, ready: list[str]) -> None:
        if self._rewritten or (self._held and not self._row):
            if not self._held:
                self._held_since = self._now
            self._held.append(self._row.rstrip())
            if len(self._held) > HELD_LIMIT:
                ready.append(self._held.pop(0))
        else:
            self._release(ready)
            ready.append(self._row)
        self._row, self._rewritten, self._returned = "", False, False

    def _release(self, ready: list[str]) -> None:
        ready.extend(self._held)
        self._held.clear()

    def _stamped(self, lines: list[str], now: float) -> bytes:
        if self._drop:
            lines = [line for line in lines if self._drop not in line]
        if not lines:
            return b""
        prefix = self._stamp(now)
        return "".join([f"{prefix}{line}\n" for line in lines]).encode("utf-8", "replace")
