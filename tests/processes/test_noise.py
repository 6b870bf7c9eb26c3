"""An engine that is loud, or says what is no text: the log holds what can be held, and the engine is never held up."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from backends.processes import logs

if TYPE_CHECKING:
    from tests.processes.conftest import Launcher

FLOOD = 200_000
MEGABYTE = 1 << 20


def said(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("gpubox: ")]


def test_a_flood_is_whole_and_in_order(start: Launcher) -> None:
    launched = start(f"lines:{FLOOD}", "exit:0")
    launched.await_end(60)
    assert said(launched.lines()) == [f"line {number}" for number in range(FLOOD)]


def test_long_lines_one_after_another_come_in_pieces_and_whole(start: Launcher) -> None:
    launched = start(*[f"long:{MEGABYTE}"] * 5, "say:after", "exit:0")
    launched.await_end(30)
    lines = said(launched.lines())
    assert lines.pop() == "after"
    assert sum(len(line.removeprefix("…")) for line in lines) == 5 * MEGABYTE
    assert sum(not line.startswith("…") for line in lines) == 5


def test_what_was_said_without_a_line_feed_before_a_kill_is_in_the_log(start: Launcher) -> None:
    launched = start("say:ready", r"raw:half a \xe2\x82", "wait")
    launched.await_line("ready")
    engine = launched.facts.engine
    assert engine is not None
    launched.signal(signal.SIGQUIT)
    launched.await_end()
    assert [line for line in said(launched.lines()) if line.startswith("half")] == ["half a \ufffd"]


def test_escapes_cannot_forge_a_line_of_gpubox_or_move_the_readers_cursor(start: Launcher) -> None:
    launched = start(r"raw:\x1b[2J\x1b[H\x1b]0;title\x07x\x00\x08y\n\x9b31mz\n", "exit:0")
    launched.await_end()
    text = "".join(part.read_bytes().decode() for part in logs.parts(launched.log))
    assert not [character for character in text if ord(character) < 32 and character not in "\t\n"]
    assert "xy" in launched.lines()
