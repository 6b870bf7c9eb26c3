"""Where an expression is found in lines that are looked at: a child runs it, as that may take for ever."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHILD = Path(__file__).with_name("scan.py")
MARKS_BUDGET_S, PICKS_BUDGET_S = 0.25, 2.0
"""What may be computed for the lines of one window, and for those of one block."""

Spans = tuple[tuple[int, int], ...]
"""Places in a line, from its first character on: where each begins and ends."""


class Matcher:
    """Asks a child about lines; all methods are called from one thread, which waits, while others go on.

    Where the child has died nothing is found any more, and `has_failed`. Raises OSError where none can be started.
    """

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.has_failed = False
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-P", "-S", str(CHILD), "match"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",
        )
        self._say({"pattern": pattern.pattern, "flags": pattern.flags})

    @property
    def pid(self) -> int:
        """The child's pid."""
        return self._child.pid

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """Return for each text where the expression is found in it."""
        return [tuple((start, end) for start, end in spans) for spans in self._ask(texts, MARKS_BUDGET_S, places=True)]

    def found(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether the expression is found in it."""
        return [bool(one) for one in self._ask(texts, PICKS_BUDGET_S, places=False)]

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()

    def _ask(self, texts: Sequence[str], budget_s: float, *, places: bool) -> list[list[tuple[int, int]]]:
        if texts and self._say({"texts": list(texts), "budget_s": budget_s, "places": places}):
            assert self._child.stdout is not None
            if answer := self._child.stdout.readline():
                return list(json.loads(answer))
            self.has_failed = True
        return [[] for _ in texts]

    def _say(self, message: dict[str, object]) -> bool:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            self.has_failed = True
        return not self.has_failed
