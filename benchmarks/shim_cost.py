"""What a shim costs: memory and CPU of an idle one, and lines a second of a flood, beside other programs that stamp.

`python -m benchmarks.shim_cost [--lines N] [--rounds N] [--peer-path DIR]`. Peers are `ts` (moreutils), `svlogd -tt`
(runit) and `multilog t` (daemontools), where they are found on PATH or in a DIR. Each reads the same numbered lines
from a program through a pipe, stamps them, and writes them to a file on the same disk, the last one included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.processes.facts import ProcessFacts, read_facts
from backends.processes.facts import signal as send_signal
from backends.processes.launch import launch
from backends.snapshots import Missing
from benchmarks.stage import until
from tests.processes.conftest import FAKE_ENGINE, Launcher

IDLE_S = 10.0
ENGINE = [sys.executable, "-I", "-S", str(FAKE_ENGINE)]


def memory_kib(pid: int) -> dict[str, int]:
    """Return RSS and PSS (shared pages counted by share) and private memory of a process, in KiB."""
    wanted = ("Rss", "Pss", "Private_Clean", "Private_Dirty")
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name: int(rows[name].split()[0]) for name in wanted}


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process in clock ticks, of which a second has a hundred."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def switches(pid: int) -> int:
    """Return how often a process was woken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


def idle_cost() -> None:
    """Print what a shim and its guard take while their engine says and does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Launcher(Path(folder)).spec("say:ready", "wait")
        path = Path(spec["facts"])
        launch(spec, path.parent)
        facts = until(lambda: _running(path), "the engine runs")
        time.sleep(1.0)
        pids = {"shim": facts.shim.pid, "guard": facts.guard.pid}
        before = {name: (cpu_ticks(pid), switches(pid)) for name, pid in pids.items()}
        time.sleep(IDLE_S)
        print(f"{'idle':<8} {'RSS':>8} {'PSS':>8} {'private':>8}  {'CPU':>14} {'woken':>6}")
        for name, pid in pids.items():
            memory = memory_kib(pid)
            private = memory["Private_Clean"] + memory["Private_Dirty"]
            ticks, woken = cpu_ticks(pid) - before[name][0], switches(pid) - before[name][1]
            sizes = " ".join(f"{kib / 1024:>4.1f} MiB" for kib in (memory["Rss"], memory["Pss"], private))
            print(f"{name:<8} {sizes}  {ticks:>2} ticks/{IDLE_S:.0f} s {woken:>6}")
        send_signal(facts.shim, signal.SIGQUIT)
        until(lambda: _exited(path), "the shim ends")


def _running(path: Path) -> ProcessFacts | None:
    facts = read_facts(path)
    return facts if not isinstance(facts, Missing) and facts.phase == "running" else None


def _exited(path: Path) -> bool:
    facts = read_facts(path)
    return not isinstance(facts, Missing) and facts.phase == "exited"


def through_shim(folder: Path, lines: int) -> float:
    """Return the seconds from the start of an engine that prints so many lines until its log is whole."""
    spec = Launcher(folder).spec(f"lines:{lines}", "exit:0")
    path = Path(spec["facts"])
    begun = time.monotonic()
    launch(spec, path.parent)
    until(lambda: _exited(path), "all is written", 300)
    took_s = time.monotonic() - begun
    _see(Path(spec["log"]), lines + 2)
    return took_s


def through(command: Callable[[Path], Sequence[str]], output: str) -> Callable[[Path, int], float]:
    """Return how to measure a peer that writes to its standard output (`output` empty), or into a file of a folder."""

    def measure(folder: Path, lines: int) -> float:
        written = folder / (output or "out")
        begun = time.monotonic()
        with (Path(os.devnull) if output else written).open("wb") as out:
            engine = subprocess.Popen([*ENGINE, f"lines:{lines}", "exit:0"], stdout=subprocess.PIPE)
            peer = subprocess.Popen(command(folder), stdin=engine.stdout, stdout=out, stderr=subprocess.DEVNULL)
            assert engine.stdout is not None
            engine.stdout.close()
            engine.wait()
            peer.wait()
        took_s = time.monotonic() - begun
        _see(written, lines)
        return took_s

    return measure


def _see(path: Path, lines: int) -> None:
    with path.open("rb") as file:
        there = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    assert there == lines, f"{there} of {lines} lines are in {path}"


def peers(folders: Sequence[Path]) -> dict[str, Callable[[Path, int], float]]:
    """Return the peers that are there."""
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    found: dict[str, Callable[[Path, int], float]] = {}
    if ts := shutil.which("ts", path=path):
        found["ts"] = through(lambda _: [ts, "%Y-%m-%dT%H:%M:%.S"], "")
    if svlogd := shutil.which("svlogd", path=path):
        found["svlogd -tt"] = through(lambda folder: [svlogd, "-tt", str(_unrotated(folder))], "current")
    if multilog := shutil.which("multilog", path=path):
        found["multilog t"] = through(lambda folder: [multilog, "t", "s1073741824", str(folder)], "current")
    return found


def _unrotated(folder: Path) -> Path:
    (folder / "config").write_text("s0\n")
    return folder


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="benchmarks.shim_cost", description=__doc__)
    parser.add_argument("--lines", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is shown")
    parser.add_argument("--peer-path", type=Path, action="append", default=[], metavar="DIR", help="look there, too")
    given = parser.parse_args()
    idle_cost()
    print(f"\n{given.lines:,} lines through a pipe, stamped, to disk: lines/s (median of {given.rounds})")
    baseline = 0.0
    for name, measure in {"gpubox's shim": through_shim, **peers(given.peer_path)}.items():
        speeds = []
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory() as folder:
                speeds.append(given.lines / measure(Path(folder), given.lines))
        speed = statistics.median(speeds)
        baseline = baseline or speed
        print(f"{name:<14} {speed:>12,.0f}   {speed / baseline:5.2f} × the shim's", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
