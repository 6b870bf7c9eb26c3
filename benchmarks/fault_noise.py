"""Faults of what an engine says: floods, lines without end, bytes that are no text, and metrics that are none."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from backends.processes.facts import read_facts
from backends.processes.launch import launch
from backends.processes.logs import split_stamp, tail
from backends.snapshots import Missing, ServerState
from benchmarks.stage import LIMIT_S, Stage, took, until
from tests.processes.conftest import Launcher

ANSWER_S = 2.0
"""The keeper answers within this, whatever an engine does to it."""

MEMORY_BYTES = 64 << 20
"""The keeper takes at most so much more memory for it, while it lasts."""

FLOOD_LINES = 200_000
PIECE = 65_536


def engine_says(actions: list[str], check: Callable[[list[str]], None]) -> Callable[[Stage], float]:
    """Return the fault in which an engine does `actions` of fake_engine.py, and `check` looks at its log's lines."""

    def fault(_: Stage) -> float:
        with tempfile.TemporaryDirectory() as name:
            spec = Launcher(Path(name)).spec(*actions)
            facts = Path(spec["facts"])
            with took() as seconds:
                launch(spec, facts.parent)
                until(lambda: _exited(facts), "the engine has said all")
            lines = [split_stamp(line)[1] for line in tail(Path(spec["log"]), 1 << 30)]
            assert lines[-1] == "gpubox: engine ended with exit code 0", lines[-1][:200]
            check([line for line in lines if not line.startswith("gpubox: ")])
        return seconds()

    return fault


def _exited(path: Path) -> bool:
    facts = read_facts(path)
    return not isinstance(facts, Missing) and facts.phase == "exited"


def all_of_the_flood(lines: list[str]) -> None:
    """See that each numbered line is there."""
    assert lines == [f"line {number}" for number in range(FLOOD_LINES)], f"{len(lines)} of {FLOOD_LINES} lines"


def a_megabyte_in_pieces(lines: list[str]) -> None:
    """See that the long line is there in marked pieces, and all of it."""
    assert "".join(line.removeprefix("…") for line in lines) == "x" * (1 << 20)
    assert all(line.startswith("…") for line in lines[1:])
    assert max(len(line.encode()) for line in lines) <= PIECE + len("…".encode())


def clean_text(lines: list[str]) -> None:
    """See that what is no text was replaced, and no control character is left."""
    assert lines == ["a\ufffd\ufffdb", "red plain", "title", "no end"], lines


NOISE = r"raw:a\xff\xfeb\n\x1b[31mred\x1b[0m plain\n\x1b]0;evil\x07title\nno end"


def metrics(mode: str) -> Callable[[Stage], float]:
    """Return the fault in which /metrics is garbled, truncated, slow, silent, or huge."""

    def fault(stage: Stage) -> float:
        page = stage.home / f"metrics-{mode}-{next(stage.moments)}"
        page.write_text("ok")
        victim = stage.ready(metrics=str(page))
        until(lambda: not isinstance(stage.server(victim.name).metrics, Missing), "metrics come in")
        keeper = psutil.Process(stage.keeper_pid())
        before_bytes, peak_bytes, slowest_s = keeper.memory_info().rss, 0, 0.0
        page.write_text(mode)
        deadline = time.monotonic() + 2 * LIMIT_S
        wanted = "some figures" if mode == "garbled" else "a reason"
        while True:
            begun = time.monotonic()
            server = stage.server(victim.name)
            slowest_s = max(slowest_s, time.monotonic() - begun)
            peak_bytes = max(peak_bytes, keeper.memory_info().rss)
            if isinstance(server.metrics, Missing):
                break
            assert time.monotonic() < deadline or mode == "garbled", f"{mode}: no client is told {wanted}"
            if time.monotonic() > deadline - LIMIT_S and mode == "garbled":
                break
            time.sleep(0.05)
        assert slowest_s < ANSWER_S, f"the keeper took {slowest_s:.1f} s to answer"
        grown_bytes = peak_bytes - before_bytes
        assert grown_bytes < MEMORY_BYTES, f"the keeper took {grown_bytes >> 20} MiB more"
        page.write_text("ok")
        with took() as seconds:
            until(lambda: not isinstance(stage.server(victim.name).metrics, Missing), "metrics come back", LIMIT_S)
            stage.comes_to(victim.name, ServerState.READY)
        victim.expect_untouched()
        stage.drop(victim.name)
        return seconds()

    return fault
