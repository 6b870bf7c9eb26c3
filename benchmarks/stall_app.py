"""The control center with a heartbeat on its loop, for benchmarks/stall.py: `stall_app SOCKET REPORT`, in a terminal.

SIGUSR1 begins a measurement and SIGUSR2 ends it; both may come again. When the app is left, REPORT holds the beats.
Without arguments it is the heartbeat alone, until SIGTERM: what the machine itself does to it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path

BEAT_S = 0.01


class Heartbeat:
    """Beats on the loop it is started on: seconds between two beats, and how many of them this thread computed."""

    def __init__(self) -> None:
        self._beats: list[tuple[float, float]] = []
        self._measures = False

    async def run(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._measure, True)
        loop.add_signal_handler(signal.SIGUSR2, self._measure, False)
        while True:
            began, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(BEAT_S)
            if self._measures:
                self._beats.append((time.perf_counter() - began, time.thread_time() - computed))

    def report(self) -> str:
        """Return the longest gap (ms), what was computed in the busiest, the gaps above 50 ms, and all beats."""
        gaps, computed = [gap for gap, _ in self._beats], [spent for _, spent in self._beats]
        return json.dumps(
            {
                "longest_ms": 1000 * max(gaps, default=0.0),
                "computed_ms": 1000 * max(computed, default=0.0),
                "over_50_ms": sum(gap > 0.05 for gap in gaps),
                "beats": len(gaps),
                "busy": sum(computed) / max(sum(gaps), 1e-9),
            }
        )

    def _measure(self, measures: bool) -> None:
        self._measures = measures


def screen(socket: Path, report: Path) -> int:
    """Run the control center over the keeper behind `socket`."""
    from backends.client import AsyncKeeper, KeeperClient
    from tui.headless.screen import show
    from tui.terminal import TerminalApp

    heartbeat = Heartbeat()

    class BeatingApp(TerminalApp):
        CSS_PATH = Path(__file__).parents[1] / "tui" / "styles" / "app.tcss"

        def on_ready(self) -> None:
            self.run_worker(heartbeat.run(), name="heartbeat")

    code = show(BeatingApp(AsyncKeeper(KeeperClient(socket), starts_keeper=False)))
    report.write_text(heartbeat.report())
    return code


async def alone() -> None:
    """Beat with nothing else to do."""
    heartbeat = Heartbeat()
    beating = asyncio.create_task(heartbeat.run())
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    print("ready", flush=True)
    await over.wait()
    beating.cancel()
    print(heartbeat.report(), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(screen(Path(sys.argv[1]), Path(sys.argv[2])))
    asyncio.run(alone())
