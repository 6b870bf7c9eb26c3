"""How long the screen's loop stalls under load: the longest gap of a 10 ms heartbeat on it, in a real terminal.

`python -m benchmarks.stall [--seconds N] [--only log,chat,box] [--size 200x50]`. The loads: 50,000 lines a second
into the log that is followed; an answer of 2,000 tokens a second; 16 GPUs and 64 servers whose figures all change
each second. The same heartbeat runs alone beside it: what it misses, the machine has taken, not the screen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from backends.snapshots import ModelKind
from benchmarks.screen_pty import Terminal
from benchmarks.stall_keeper import StandIn
from tests.unit.chat_engine import FakeEngine, Request, Wire, piece, usage

ROOT = Path(__file__).parents[1]
GOAL_MS = 100.0
LINES_PER_S = 50_000
TOKENS_PER_S = 2_000
SETTLE_S = 3.0

WRITER = """
import datetime, sys, time
path, rate = sys.argv[1], int(sys.argv[2])
text = "(EngineCore pid=4711) INFO 11-21 09:45:18 [loggers.py:257] Engine 000: Avg prompt throughput: %d tokens/s"
begun, written = time.monotonic(), 0
with open(path, "a") as file:
    while True:
        due = int((time.monotonic() - begun) * rate)
        stamp = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        file.write("".join(f"{stamp} {text % number}\\n" for number in range(written, due)))
        file.flush()
        written = due
        time.sleep(0.01)
"""
"""A program that writes a log as the shim does, so many lines a second."""

ANSWER = (
    "## A heading\n\nSome **words** of an answer, with `code`, [a link](http://localhost) and more words after it.\n\n"
    "1. one\n2. two\n\n```python\ndef answer(number: int) -> int:\n    return number + 42\n```\n\n"
    "| a | b |\n| - | - |\n| 1 | 2 |\n\n"
)


@contextlib.contextmanager
def beside() -> Iterator[Callable[[int], None]]:
    """Run the heartbeat alone; yields what sends it a signal, and prints what it found at the end."""
    with subprocess.Popen([sys.executable, "-m", "benchmarks.stall_app"], stdout=subprocess.PIPE, text=True) as alone:
        assert alone.stdout is not None
        assert alone.stdout.readline() == "ready\n"
        try:
            yield alone.send_signal
        finally:
            alone.send_signal(signal.SIGTERM)
            found = json.loads(alone.stdout.readline())
            print(f"{'':<8} {'the same heartbeat alone':<34} {_told(found)}", flush=True)


def _told(found: dict[str, float]) -> str:
    return (
        f"{found['longest_ms']:>8.0f} ms {found['over_50_ms']:>8.0f} {found['computed_ms']:>10.0f} ms"
        f" {found['busy']:>8.0%} {found['beats']:>7.0f}"
    )


class Trial:
    """One load: a screen over a stand-in keeper, and the windows in which its heartbeat is watched."""

    def __init__(self, folder: Path, size: tuple[int, int], seconds: float) -> None:
        self.folder = folder
        self.size = size
        self.seconds = seconds

    @contextlib.contextmanager
    def screen(self, name: str, what: str) -> Iterator[tuple[Terminal, Callable[[float], None]]]:
        """Open the screen; yields its terminal, and what watches the heartbeat for so many seconds."""
        report = self.folder / f"{name}.json"
        command = [sys.executable, "-m", "benchmarks.stall_app", str(self.folder / name), str(report)]
        environ = os.environ | {"GPUBOX_HOME": str(self.folder / "home"), "PYTHONPATH": str(ROOT)}
        with beside() as signal_alone, Terminal(command, environ, self.size) as terminal:
            terminal.wait_for("H200")

            def watch(seconds: float) -> None:
                for number in (signal.SIGUSR1, signal.SIGUSR2):
                    os.kill(terminal.pid, number)
                    signal_alone(number)
                    if number is signal.SIGUSR1:
                        time.sleep(seconds)

            yield terminal, watch
            terminal.press("\x11")  # Ctrl+Q, which leaves from anywhere
            terminal.wait_for_end()
            found = json.loads(report.read_text())
            verdict = "ok" if found["longest_ms"] < GOAL_MS else "TOO LONG"
            print(f"{name:<8} {what:<34} {_told(found)}  {verdict}", flush=True)

    def log(self) -> None:
        """Follow a log that grows fast."""
        path = self.folder / "followed.log"
        path.touch()
        writer = [sys.executable, "-c", WRITER, str(path), str(LINES_PER_S)]
        with StandIn(self.folder / "log", 8, 1, log_path=str(path)), subprocess.Popen(writer) as writing:
            try:
                with self.screen("log", f"{LINES_PER_S} lines/s into the followed log") as (terminal, watch):
                    terminal.press("3")
                    terminal.wait_for("Avg prompt")
                    time.sleep(SETTLE_S)
                    before = path.stat().st_size
                    watch(self.seconds)
                    print(f"{'':<8} the log grew by {(path.stat().st_size - before) / self.seconds / 1e6:.1f} MB/s")
            finally:
                writing.kill()

    def chat(self) -> None:
        """Read an answer that comes fast."""
        sent = 0

        async def script(request: Request, wire: Wire) -> None:
            nonlocal sent
            import asyncio

            words = [word + " " for word in ANSWER.split(" ")]
            begun = time.monotonic()
            await wire.begin()
            while time.monotonic() - begun < self.seconds + 60:
                due = int((time.monotonic() - begun) * TOKENS_PER_S)
                while sent < due:
                    await wire.event(piece(words[sent % len(words)]))
                    sent += 1
                await asyncio.sleep(0.005)
            await wire.event(usage(7, sent))
            await wire.done()

        with FakeEngine() as engine:
            engine.script = script
            connection = engine.connection(ModelKind.CHAT)
            with (
                StandIn(self.folder / "chat", 8, 1, connection=connection),
                self.screen("chat", f"an answer of {TOKENS_PER_S} tokens/s") as (terminal, watch),
            ):
                terminal.press("4")
                time.sleep(SETTLE_S)
                terminal.press("Tell me\r")
                terminal.wait_for("heading")
                time.sleep(SETTLE_S)
                before = sent
                watch(self.seconds)
                print(f"{'':<8} {(sent - before) / self.seconds:.0f} tokens/s were sent")

    def box(self) -> None:
        """Watch a large box, on each screen that shows all of it."""
        with (
            StandIn(self.folder / "box", 16, 64),
            self.screen("box", "16 GPUs, 64 servers at 1 Hz") as (terminal, watch),
        ):
            for key in "251":
                terminal.press(key)
                time.sleep(SETTLE_S)
                watch(self.seconds / 3)


def main() -> int:
    """Run the trials; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each load is watched")
    parser.add_argument("--only", default="log,chat,box")
    parser.add_argument("--size", default="200x50")
    wanted = parser.parse_args()
    columns, lines = wanted.size.split("x")
    print(f"load now: {os.getloadavg()[0]:.1f} on {os.cpu_count()} hardware threads")
    print(f"{'':<43} {'longest gap':>11} {'> 50 ms':>8} {'computed':>13} {'of a core':>9} {'beats':>7}")
    with tempfile.TemporaryDirectory(prefix="gpubox-stall-") as folder:
        trial: Any = Trial(Path(folder), (int(columns), int(lines)), wanted.seconds)
        for name in wanted.only.split(","):
            getattr(trial, name)()
    return 0


if __name__ == "__main__":
    sys.exit(main())
