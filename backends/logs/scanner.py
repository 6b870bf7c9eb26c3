"""A search or a filter of one log, as the one who asked for it sees it: a child that searches, and what it has found.

Of each block only the number of lines found is kept, so that a search with ten million matches costs as little memory
as one with none.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from backends.logs.matcher import Matcher
from backends.logs.parts import Part
from backends.logs.scan import ALL_DONE, GIVEN_UP, NEWS, REACHED_END, RECORD, SAME_BLOCK
from backends.logs.text import BLOCK_BYTES, Rule, text_start

CHILD = Path(__file__).with_name("scan.py")
KEPT_LINES = 20_000
_UNKNOWN = 255


class Block(NamedTuple):
    """Lines that begin in one block: where in the log, and their text."""

    ats: list[int]
    texts: list[str]


class Kept:
    """The blocks that were used last, of which at most some thousand lines are kept."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._lines = 0

    def get(self, key: tuple[int, int]) -> Block | None:
        """Return a block, if it is there, by its part's serial and its number."""
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        return None

    def put(self, key: tuple[int, int], block: Block) -> None:
        """Keep a block that will not change."""
        self._blocks[key] = block
        self._lines += len(block.ats) + 1
        while self._lines > KEPT_LINES and len(self._blocks) > 2:
            self._lines -= len(self._blocks.popitem(last=False)[1].ats) + 1

    @property
    def lines(self) -> int:
        """How many lines are kept, each block counting as one more."""
        return self._lines


class Scan:
    """The lines of one log that `rule` wants, of them those with `pattern`; `close` ends the child.

    `on_news` is called from a thread of its own; `matcher` knows the same pattern.

    `has_reached_end` says that from where it began all lines below are searched, `is_done` that all are; both stay true
    while the log grows and the search goes on in what is new. `has_failed`: the child died before that. `given_up` are
    lines that took the pattern too long.
    """

    def __init__(
        self,
        rule: Rule,
        on_news: Callable[[], object],
        block_bytes: int = BLOCK_BYTES,
        *,
        pattern: re.Pattern[str] | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        self.count = self.given_up = 0
        self._rule = rule
        self._pattern = pattern
        self._matcher = matcher
        self.has_reached_end = self.is_done = self.has_failed = False
        self.kept = Kept()
        self._on_news = on_news
        self._block_bytes = block_bytes
        self._hits: dict[int, array[int]] = {}
        self._states: dict[int, bytearray] = {}
        self._fed: dict[int, tuple[int, bool]] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child's pid, once there is one."""
        return self._child.pid if self._child else None

    def feed(self, parts: Sequence[Part], at: int) -> None:
        """Tell the child how far the log goes; the first time, begin at the block that the place `at` lies in."""
        if self._closed or not parts:
            return
        begins = self._child is None
        if begins:
            self._start()
        serials = [part.serial for part in parts]
        messages: list[list[object]] = [
            ["part", part.serial, part.fd, part.size, part.is_final]
            for part in parts
            if self._fed.get(part.serial) != (part.size, part.is_final)
        ]
        messages += [["drop", serial] for serial in self._fed if serial not in serials]
        if begins:
            part = next((one for one in reversed(parts) if at >= one.base), parts[0])
            messages.append(["from", part.serial, max(0, min(at - part.base, part.size - 1))])
        if all(self._say(message) for message in messages):
            self._fed = {part.serial: (part.size, part.is_final) for part in parts}
            for serial in [serial for serial in self._hits if serial not in self._fed]:
                self.count -= sum(self._hits.pop(serial))
                self._states.pop(serial, None)

    def _start(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-P", "-S", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        spec = {
            "level": self._rule.level,
            "processes": sorted(self._rule.processes),
            "pattern": self._pattern.pattern if self._pattern else None,
            "flags": self._pattern.flags if self._pattern else 0,
            "block_bytes": self._block_bytes,
            "parent": os.getpid(),
        }
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(spec).encode() + b"\n")
        os.set_blocking(self._child.stdin.fileno(), False)
        threading.Thread(target=self._listen, args=(self._child,), name="log search", daemon=True).start()

    def _say(self, message: list[object]) -> bool:
        """Send what is new; False where the child is too busy to hear it, so that it must be said again."""
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            # A pipe takes so short a message whole or not at all.
            os.write(self._child.stdin.fileno(), json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            return False
        except (BrokenPipeError, ValueError):
            pass  # It is over; its thread says so.
        return True

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """Runs in a thread of its own until the child ends, and waits for it, so that no zombie is left."""
        assert child.stdout is not None
        rest = b""
        while data := child.stdout.read(1 << 16):
            data = rest + data
            whole = len(data) - len(data) % RECORD.size
            rest = data[whole:]
            for record in RECORD.iter_unpack(data[:whole]):
                self._take(*record)
            self._on_news()
        child.stdout.close()
        child.wait()
        if not self._closed:
            self.has_failed = self.has_reached_end = self.is_done = True
            self._on_news()

    def _take(self, serial: int, number: int, hits: int, state: int) -> None:
        if serial == NEWS:
            self.has_reached_end |= number == REACHED_END
            self.is_done |= number == ALL_DONE
            self.given_up += hits if number == GIVEN_UP else 0
            return
        table = self._hits.setdefault(serial, array("i"))
        states = self._states.setdefault(serial, bytearray())
        if number >= len(table):
            more = number + 1 - len(table)
            states += bytes([_UNKNOWN]) * more
            table.extend([0] * more)
        table[number] += hits
        self.count += hits
        if state != SAME_BLOCK:
            states[number] = state

    def pick(self, lines: Sequence[str], state: int) -> list[int]:
        """Return the places of the lines that are wanted."""
        places, _ = self._rule.pick(lines, state)
        if self._matcher is None:
            return places
        found = self._matcher.found([lines[place][text_start(lines[place]) :] for place in places])
        return [place for place, is_found in zip(places, found, strict=True) if is_found]

    def state_at(self, part: Part, number: int) -> int | None:
        """Return the rule's state before a block's first line; None where the search has not been."""
        states = self._states.get(part.serial)
        state = states[number] if states is not None and number < len(states) else _UNKNOWN
        return None if state == _UNKNOWN else state

    def hits_in(self, part: Part, number: int) -> int:
        """Return how many lines were found in a block."""
        table = self._hits.get(part.serial)
        return table[number] if table is not None and number < len(table) else 0

    def is_barren(self, part: Part, number: int) -> bool:
        """Say whether a block was searched in vain."""
        return self.state_at(part, number) is not None and not self.hits_in(part, number)

    def hits_before(self, part: Part, number: int | None) -> int:
        """Return how many lines were found in a part's blocks before `number`, or in all of it."""
        table = self._hits.get(part.serial)
        return sum(table[:number]) if table is not None else 0

    def close(self) -> None:
        """End the child, without waiting for it."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
            assert self._child.stdin is not None
            self._child.stdin.close()
