"""`gpubox reap`: ends what servers of ours have left behind; and, with a typed confirmation, a foreign process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection

from backends.client import KeeperClient, ensure_keeper
from backends.errors import ConflictError, GpuboxError, UsageError
from backends.orphans import Orphan
from backends.snapshots import GpuProcess, Missing, Owner, Server, Snapshot
from tui.format import duration, memory, shown
from tui.headless.output import complain, say, table

BACK_S = 15.0
BACK_LOOK_S = 0.25
SLACK_BYTES = 512 << 20


def reap(pid: int | None, *, yes: bool, confirm: int | None, as_json: bool) -> int:
    """End all orphans after one question, or the foreign process `pid` once its pid was typed again.

    Returns 0 where nothing is left, else the code of what failed first; raises UsageError where nobody can be asked.
    """
    if pid is None and confirm is not None:
        raise UsageError("--confirm goes with a pid", "gpubox reap PID --confirm PID")
    if pid is not None and yes:
        raise UsageError("--yes is for orphans", f"a foreign process wants its pid again: --confirm {pid}")
    client = ensure_keeper()
    if pid is None:
        return _reap_orphans(client, yes=yes, as_json=as_json)
    return _reap_foreign(client, pid, confirm, as_json=as_json)


def orphan_table(orphans: tuple[Orphan, ...], now: float) -> str:
    """Return orphans as a table."""
    heads = ("LEFT BY", "PID", "GPUS", "GPU MEMORY", "HOST MEMORY", "AGE", "COMMAND")
    rows = [
        (
            one.server,
            str(one.pid),
            ",".join(map(str, one.gpus)) or "–",
            shown(one.gpu_bytes if one.gpus else None, memory),
            memory(one.host_bytes),
            duration(now - one.started_at),
            one.command,
        )
        for one in orphans
    ]
    return table(heads, rows, right=(1, 3, 4, 5))


def _reap_orphans(client: KeeperClient, *, yes: bool, as_json: bool) -> int:
    orphans = client.orphans()
    if not orphans:
        if as_json:
            print("[]")
        else:
            say("no orphans: no server of yours has left a process behind")
        return 0
    if not as_json or not yes:
        say(orphan_table(orphans, time.time()))
    if not yes:
        many = len(orphans) > 1
        _ask(f"Kill {'these processes' if many else 'this process'}? [y/N] ", ("y", "yes"), "--yes says yes")
    held = {index for one in orphans for index in one.gpus}
    return _end(client, [(one.pid, one.start_ticks) for one in orphans], held, foreign=False, as_json=as_json)


def _reap_foreign(client: KeeperClient, pid: int, confirm: int | None, *, as_json: bool) -> int:
    orphan = next((one for one in client.orphans() if one.pid == pid), None)
    if orphan is not None:
        say(orphan_table((orphan,), time.time()))
        if confirm != pid:
            _ask("Kill this process? [y/N] ", ("y", "yes"), f"--confirm {pid} says yes")
        return _end(client, [(pid, orphan.start_ticks)], set(orphan.gpus), foreign=False, as_json=as_json)
    snapshot = client.snapshot()
    ticks, held, lines = _described(snapshot, pid)
    if confirm is not None and confirm != pid:
        raise UsageError(f"--confirm {confirm} is not {pid}", "nothing was done")
    say("\n".join(lines))
    if confirm is None:
        question = f"It is not gpubox's. To end it, type its pid ({pid}): "
        _ask(question, (str(pid),), f"--confirm {pid} says it in a script")
    return _end(client, [(pid, ticks)], held, foreign=True, as_json=as_json)


def _described(snapshot: Snapshot, pid: int) -> tuple[int, set[int], list[str]]:
    """Return a foreign process's start ticks and GPUs, and what there is to know of it before it is ended."""
    held: list[tuple[int, GpuProcess]] = []
    for gpu in snapshot.box.gpus:
        if not isinstance(gpu.processes, Missing):
            held += [(gpu.index, process) for process in gpu.processes if process.pid == pid]
    server = next((one for one in snapshot.servers if one.foreign is not None and one.foreign.pid == pid), None)
    if held and held[0][1].owner is Owner.SERVER:
        name = held[0][1].server
        raise ConflictError(f"pid {pid} is a process of server {name}", f"gpubox stop {name}")
    if not held and server is None:
        raise ConflictError(f"pid {pid} holds no GPU memory and is no model server", "gpubox leaves it alone")
    ticks = server.foreign.start_ticks if server is not None and server.foreign else held[0][1].start_ticks
    if ticks is None:
        raise ConflictError(f"pid {pid} cannot be seen from here: it is in another container", "end it there")
    lines = [f"pid {pid}", *_facts(held, server)]
    return ticks, {index for index, _ in held}, lines


def _facts(held: list[tuple[int, GpuProcess]], server: Server | None) -> list[str]:
    lines = []
    if server is not None and server.foreign is not None:
        lines += [f"  user     {server.foreign.user}", f"  command  {server.foreign.command}"]
        lines.append(f"  serves   {server.served_name} at {server.address}, as {server.name}")
    elif held:
        lines += [f"  user     {held[0][1].user}", f"  command  {held[0][1].command}"]
    lines += [f"  GPU {index:<4} {shown(process.memory_bytes, memory)}" for index, process in held]
    return [*lines, *(f"  note     {process.note}" for _, process in held[:1] if process.note)]


def _ask(question: str, answers: tuple[str, ...], otherwise: str) -> None:
    """Ask at the terminal; raises UsageError where there is none, and where the answer is another."""
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask at, so nothing was done", otherwise)
    print(question, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in answers:
        raise GpuboxError("nothing was done")


def _end(
    client: KeeperClient, processes: list[tuple[int, int]], gpus: set[int], *, foreign: bool, as_json: bool
) -> int:
    """End processes one after another; `gpus` are those on which they hold memory."""
    before, code, results = _used(client, gpus), 0, []
    for pid, ticks in processes:
        try:
            reaped = client.reap(pid, ticks, foreign=foreign)
        except GpuboxError as problem:
            code = complain(problem) if code == 0 else code
            results.append({"pid": pid, "error": problem.message})
            continue
        results.append(
            {"pid": pid, "signal": reaped.signal, "shared_memory_files": reaped.shared_memory_files, "error": None}
        )
        files = reaped.shared_memory_files
        cleaned = f"; {files} shared-memory file{'' if files == 1 else 's'} removed" if files else ""
        say(f"pid {pid} is gone ({reaped.signal}){cleaned}")
    if code == 0 and before:
        say(_memory_back(client, before))
    if as_json:
        print(json.dumps(results, indent=2))
    return code


def _used(client: KeeperClient, gpus: Collection[int]) -> dict[int, int]:
    """Return how much memory of these GPUs is in use, by index."""
    return {
        gpu.index: gpu.memory_used_bytes
        for gpu in client.snapshot().box.gpus
        if gpu.index in gpus and not isinstance(gpu.memory_used_bytes, Missing)
    }


def _memory_back(client: KeeperClient, before: dict[int, int]) -> str:
    """Wait, within reason, until memory comes back; say how much came back where."""
    deadline = time.monotonic() + BACK_S
    while True:
        back = {index: before[index] - used for index, used in _used(client, before).items()}
        freed = {index: size for index, size in back.items() if size > SLACK_BYTES}
        if freed or time.monotonic() > deadline:
            break
        time.sleep(BACK_LOOK_S)
    told = ", ".join(f"GPU {index} {memory(size)}" for index, size in freed.items())
    return f"memory that came back: {told}" if told else f"no GPU memory came back within {BACK_S:.0f} s"
