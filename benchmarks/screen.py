"""What the screen costs beside nvitop: CPU, bytes on the terminal, memory, and the time to the first full screen.

`python -m benchmarks.screen [--nvitop PATH] [--seconds N] [--paints N] [--sizes 80x24,200x50]
[--only paints,compare,slow]`. Both programs run in
real pseudo-terminals that only read, over the same stand-in for the NVIDIA driver with eight GPUs. Quiet: no figure
of a GPU changes. Busy: all change each second; for gpubox a server starts and ten serve too, each with a page of
metrics that is read each second. Columns of gpubox are its screen, its keeper, and both.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.snapshots import Missing, ServerState
from benchmarks.screen_pty import Terminal, cpu_s, rss_mib
from tests.gpu.conftest import MIB, SOURCE, NvmlStub, StubGpu
from tests.keeper.conftest import Box, box_in, fake_profile

ENGINE = Path(__file__).with_name("screen_engine.py")
GPUS = 8
SERVERS = 10
LAST_GPU = r"68\.4"
"""The last GPU's memory in GiB: once it stands on the screen, all of the first screen does."""

SETTLE_S = 4.0
SETTLED = r"111\.1"
"""The first GPU's memory once the load is over; before, no digit is a 1, so all of it is written."""

SLOW_BYTES_PER_S = {"9600 baud": 960, "38400 baud": 3840, "115200 baud": 11520}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a program used: CPU seconds a minute and MiB by process, bytes a second on the terminal."""

    cpu: Mapping[str, float]
    rss: Mapping[str, float]
    written: float

    @property
    def all_cpu(self) -> float:
        """CPU seconds a minute, all processes."""
        return sum(self.cpu.values())


class Driver:
    """The eight GPUs: as they are when quiet, and changing each second while `busy`."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler, "a C compiler is needed for the stand-in for the NVIDIA driver"
        library = folder / "libnvidia-ml.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE)], check=True)
        self._stub = NvmlStub(library, folder / "nvml.ini")
        self._tenants = [subprocess.Popen(["sleep", "100000"]) for _ in range(GPUS)]
        self.environ = self._stub.environ()
        self.unsettle()

    def close(self) -> None:
        """End the tenants of the GPUs."""
        for tenant in self._tenants:
            tenant.kill()
            tenant.wait()

    def unsettle(self) -> None:
        """Show what the GPUs are at the beginning."""
        self._show(lambda index: {"utilization": 10 * index, "power_mw": 300_000 + index, "used": 0})

    def settle(self) -> None:
        """Show what SETTLED looks for."""
        self._show(lambda index: {"utilization": 50, "power_mw": 200_000, "used": 0}, first_mib=round(111.1 * 1024))

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Change every figure of every GPU each second."""
        over = threading.Event()

        def change() -> None:
            while not over.wait(1.0):
                self._show(
                    lambda _: {
                        "utilization": random.randrange(101),
                        "power_mw": random.randrange(80_000, 700_000),
                        "temperature": random.randrange(30, 85),
                        "clock": random.randrange(300, 1980),
                        "used": random.randrange(20_000),
                    }
                )

        changing = threading.Thread(target=change)
        changing.start()
        try:
            yield
        finally:
            over.set()
            changing.join()

    def _show(self, figures: Callable[[int], dict[str, int]], first_mib: int | None = None) -> None:
        gpus = []
        for index, tenant in enumerate(self._tenants):
            read = figures(index)
            used = 30_000 + 3_000 * index + read.pop("used")
            if index == 0:
                used = first_mib or random.randrange(25, 100, 10) * 1024 + 512
            elif index == GPUS - 1:
                used = round(68.4 * 1024)
            processes = ((tenant.pid, (used - 500) * MIB, "compute"),)
            gpus.append(StubGpu({**read, "memory_used": used * MIB}, processes))
        self._stub.show(gpus)


def measured(terminal: Terminal, pids: Mapping[str, int], seconds: float) -> Cost:
    """Watch a program that has settled for so many seconds."""
    cpu, written, begun = {name: cpu_s(pid) for name, pid in pids.items()}, terminal.written_bytes, time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - begun
    return Cost(
        {name: (cpu_s(pid) - cpu[name]) / took * 60 for name, pid in pids.items()},
        {name: rss_mib(pid) for name, pid in pids.items()},
        (terminal.written_bytes - written) / took,
    )


class Bench:
    """One box, both programs, and the table that is printed."""

    def __init__(self, box: Box, driver: Driver, nvitop: str | None, seconds: float) -> None:
        self.box = box
        self.driver = driver
        self.nvitop = nvitop
        self.seconds = seconds
        self.environ = box.environ

    def screen(self, size: tuple[int, int], bytes_per_s: int = 0) -> Terminal:
        """Return gpubox in a terminal."""
        return Terminal(self.box.command(), self.environ, size, bytes_per_s)

    def monitor(self, size: tuple[int, int]) -> Terminal:
        """Return nvitop in a terminal."""
        assert self.nvitop is not None
        return Terminal([self.nvitop, "--monitor"], self.environ, size)

    def pids(self, terminal: Terminal) -> dict[str, int]:
        """Return the processes of a running screen."""
        keeper = self.box.client.snapshot().keeper
        assert keeper is not None
        return {"screen": terminal.pid, "keeper": keeper.pid}

    def first_paint(self, made: Callable[[], Terminal], times: int) -> list[float]:
        """Return the seconds from exec to the first full screen, so many times."""
        took = []
        for _ in range(times):
            with made() as terminal:
                took.append(terminal.wait_for(LAST_GPU))
        return took

    def end_keeper(self) -> None:
        """End the keeper, and await its end."""
        if self.box.client.is_up():
            self.box.client.shutdown()
            while self.box.keeper_pids():
                time.sleep(0.05)

    def paints(self, size: tuple[int, int], times: int) -> None:
        """Print the times to the first paint."""
        rows: dict[str, list[float]] = {}
        with self.screen(size) as terminal:
            terminal.wait_for(LAST_GPU)
        rows["gpubox, keeper runs"] = self.first_paint(lambda: self.screen(size), times)

        def without_keeper() -> Terminal:
            self.end_keeper()
            return self.screen(size)

        rows["gpubox, no keeper yet"] = self.first_paint(without_keeper, times)
        if self.nvitop:
            rows["nvitop"] = self.first_paint(lambda: self.monitor(size), times)
        for what, took in rows.items():
            seen = f"{statistics.median(took):5.2f} s   (best {min(took):.2f}, worst {max(took):.2f})"
            print(f"first paint {_name(size):<7} {what:<24} {seen}", flush=True)

    def compare(self, size: tuple[int, int]) -> None:
        """Print the table of both, quiet and busy."""
        costs: dict[str, Cost] = {}
        with self.screen(size) as terminal:
            terminal.wait_for(LAST_GPU)
            time.sleep(SETTLE_S)
            costs["gpubox quiet"] = measured(terminal, self.pids(terminal), self.seconds)
            names = self.serve()
            time.sleep(SETTLE_S)
            costs["gpubox ten servers"] = measured(terminal, self.pids(terminal), self.seconds)
            terminal.press("2")
            time.sleep(SETTLE_S)
            costs["gpubox ten, on Servers"] = measured(terminal, self.pids(terminal), self.seconds)
            terminal.press("1")
            self.box.start(_profile("starting", bench_start=self.seconds + 3 * SETTLE_S))
            with self.driver.busy():
                time.sleep(SETTLE_S)
                costs["gpubox busy"] = measured(terminal, self.pids(terminal), self.seconds)
            self.drop([*names, "starting"])
        if self.nvitop:
            with self.monitor(size) as terminal:
                terminal.wait_for(LAST_GPU)
                time.sleep(SETTLE_S)
                costs["nvitop quiet"] = measured(terminal, {"screen": terminal.pid}, self.seconds)
                with self.driver.busy():
                    time.sleep(SETTLE_S)
                    costs["nvitop busy"] = measured(terminal, {"screen": terminal.pid}, self.seconds)
        self.tell(size, costs)

    def tell(self, size: tuple[int, int], costs: Mapping[str, Cost]) -> None:
        """Print one size's table, with the ratios."""
        print(f"{_name(size):<24} {'CPU s/min':>26} {'bytes/s':>9} {'RSS MiB':>22}   of nvitop: CPU  bytes")
        for what, cost in costs.items():
            parts = "+".join(f"{value:.2f}" for value in cost.cpu.values())
            cpu = f"{parts} = {cost.all_cpu:.2f}" if len(cost.cpu) > 1 else parts
            rss = "+".join(f"{value:.0f}" for value in cost.rss.values()) + f" = {sum(cost.rss.values()):.0f}"
            other = costs.get("nvitop quiet" if "quiet" in what else "nvitop busy" if "busy" in what else "")
            ratio = f"{cost.all_cpu / other.all_cpu:>15.2f} {cost.written / other.written:>6.2f}" if other else ""
            print(f"{what:<24} {cpu:>26} {cost.written:>9.0f} {rss:>22} {ratio}")
        for place in ("ten servers", "ten, on Servers"):
            more = (costs[f"gpubox {place}"].all_cpu - costs["gpubox quiet"].all_cpu) / 60
            print(f"{place}: {more:+.1%} of a core", flush=True)

    def slow(self, what: str, bytes_per_s: int, size: tuple[int, int]) -> None:
        """Print how long a slow terminal takes to show the newest figure after GPUs and screens have changed fast."""
        self.driver.unsettle()
        with self.screen(size, bytes_per_s) as terminal:
            terminal.wait_for(LAST_GPU)
            with self.driver.busy():
                time.sleep(SETTLE_S)
                for key in "2121212121":
                    terminal.press(key)
                    time.sleep(0.2)
            begun = time.monotonic()
            terminal.forget()
            self.driver.settle()
            took = terminal.wait_for(SETTLED, 60.0) + terminal.begun_at - begun
            print(f"slow line, {what}, {_name(size)}: the newest figure stands there after {took:.1f} s", flush=True)

    def serve(self) -> list[str]:
        """Have ten servers that are ready and tell metrics."""
        names = [f"served-{number}" for number in range(SERVERS)]
        for name in names:
            self.box.start(_profile(name))
        for name in names:
            self.box.until(ServerState.READY, name)
            self.box.until(lambda server: not isinstance(server.metrics, Missing), name)
        return names

    def drop(self, names: Sequence[str]) -> None:
        """Stop and forget servers."""
        for name in names:
            self.box.client.stop(name, force=True)
        for name in names:
            self.box.until(lambda server: not server.is_live, name)
            self.box.client.forget(name)


def _profile(name: str, **args: Any) -> dict[str, Any]:
    return fake_profile(name) | {"python": str(ENGINE), "args": args, "port": "auto"}


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def main() -> int:
    """Run the whole comparison; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nvitop", help="nvitop's program, where it is not on PATH")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long each state is watched")
    parser.add_argument("--paints", type=int, default=5, help="how often the first paint is timed")
    parser.add_argument("--sizes", default="80x24,200x50")
    parser.add_argument("--only", default="paints,compare,slow")
    wanted = parser.parse_args()
    nvitop = wanted.nvitop or shutil.which("nvitop")
    if nvitop is None:
        print("nvitop is not on PATH (pip install nvitop, or --nvitop PATH): gpubox is measured alone", file=sys.stderr)
    sizes = [(int(columns), int(lines)) for columns, lines in (size.split("x") for size in wanted.sizes.split(","))]
    with tempfile.TemporaryDirectory(prefix="gpubox-bench-") as folder:
        driver = Driver(Path(folder))
        try:
            os.environ.update(driver.environ)
            with box_in(Path(folder) / "home") as box:
                bench = Bench(box, driver, nvitop, wanted.seconds)
                print(f"load now: {os.getloadavg()[0]:.1f} on {os.cpu_count()} hardware threads")
                if "paints" in wanted.only:
                    bench.paints(sizes[0], wanted.paints)
                if "compare" in wanted.only:
                    for size in sizes:
                        bench.compare(size)
                if "slow" in wanted.only:
                    for what, bytes_per_s in SLOW_BYTES_PER_S.items():
                        bench.slow(what, bytes_per_s, sizes[0])
        finally:
            driver.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
