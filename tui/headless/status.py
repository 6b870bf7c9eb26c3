"""`gpubox status`: the box and its servers at one moment, from the keeper's snapshot."""

from __future__ import annotations

import json
import sys
import time

from backends.offline import orphans_now, snapshot_now
from backends.orphans import Orphan
from backends.snapshots import Gpu, Missing, Owner, Server, ServerState, Snapshot, dump
from tui.format import NOTHING, count, duration, fit, gib, indices, memory, percent, short_gpu_name, shown
from tui.headless.output import table
from tui.order import in_order
from tui.owners import SIGNS, owned, share_text, worth_telling
from tui.progress import start_text, wedged_text
from tui.sleeping import held_text, idle_text, slot_parts, state_words, steps_text

WATCH_S = 1.0


def status(*, as_json: bool, watch: bool) -> int:
    """Print the state once, or once a second until interrupted."""
    try:
        while True:
            snapshot = snapshot_now()
            orphans = orphans_now(snapshot)
            text = _json(snapshot, orphans) if as_json else "\n".join(lines(snapshot, time.time(), orphans))
            if watch and not as_json and sys.stdout.isatty():
                text = f"\x1b[H\x1b[2J{text}"
            print(json.dumps(json.loads(text), indent=None if watch else 2) if as_json else text, flush=True)
            if not watch:
                return 0
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return 0


def _json(snapshot: Snapshot, orphans: tuple[Orphan, ...]) -> str:
    told = json.loads(dump(snapshot))
    return json.dumps(told | {"orphans": json.loads(dump(orphans, tuple[Orphan, ...]))})


def lines(snapshot: Snapshot, now: float, orphans: tuple[Orphan, ...] = ()) -> list[str]:
    """Return the state as text."""
    box = snapshot.box
    host = box.host
    keeper = f"keeper {snapshot.keeper.pid}" if snapshot.keeper else "no keeper is needed"
    used = host.memory_total_bytes - host.memory_available_bytes
    head = [
        f"gpubox · {host.hostname} · {keeper}",
        f"CPU {shown(host.cpu_utilization, percent)} of {host.cpu_count} cores · "
        f"memory {gib(used)}/{gib(host.memory_total_bytes)} GiB"
        + (f" · driver {box.driver_version}, CUDA {box.cuda_version}" if box.driver_version else ""),
        "",
    ]
    if box.gpus:
        columns = ("GPU", "NAME", "MEMORY GiB", "UTIL", "TEMP", "POWER W", "HELD BY")
        head.append(table(columns, [_gpu_row(gpu) for gpu in box.gpus], right=(2, 3, 4, 5)))
    else:
        head.append(box.no_gpus or "no GPU")
    head.append("")
    if told := _slots(snapshot) + _switches(snapshot, now):
        head += [*told, ""]
    if told := _shares(snapshot) + _notes(snapshot) + _left_behind(orphans):
        head += [*told, ""]
    if not snapshot.servers:
        return [*head, "no server yet; start one: gpubox --headless --profile demo   (profiles: gpubox profiles list)"]
    servers = in_order(snapshot.servers)
    heads = ("SERVER", "STATE", "MODEL", "GPUS", "PORT", "KV", "TOK/S", "RUN/WAIT", "UP")
    head.append(table(heads, [_server_row(server, now) for server in servers], right=(4, 5, 6, 7, 8)))
    head += [f"{s.name}: {s.cause}\n  log: {s.log_path}" for s in servers if s.cause]
    head += [f"{s.name}: careful: {warning}" for s in servers if s.is_live for warning in s.warnings]
    head += [
        f"{s.name}: started by hand by {s.foreign.user}, pid {s.foreign.pid}: {fit(s.foreign.command, 100)}"
        for s in servers
        if s.foreign
    ]
    return head


def _slots(snapshot: Snapshot) -> list[str]:
    """Say for each GPU with servers that can sleep who is awake and who sleeps there; and what that holds."""
    told = [
        f"GPU {gpu.index}  slot: " + " · ".join(f"{one.name} {words}" for one, words in parts)
        for gpu in snapshot.box.gpus
        if (parts := slot_parts(gpu.uuid, snapshot.servers))
    ]
    held = held_text(snapshot.servers)
    return [*told, held] if held else told


def _switches(snapshot: Snapshot, now: float) -> list[str]:
    return [
        f"switching to {one.to}: {steps_text(one, now) or 'waits for the switch before it'}"
        for one in snapshot.switches
    ]


def _shares(snapshot: Snapshot) -> list[str]:
    """Say for each GPU that is used whose its memory is."""
    return [
        f"GPU {gpu.index}  " + " · ".join(f"{SIGNS[share.owner]} {share_text(share)}" for share in gpu.shares)
        for gpu in snapshot.box.gpus
        if worth_telling(gpu)
    ]


def _notes(snapshot: Snapshot) -> list[str]:
    """Say what is odd about foreign processes."""
    return [
        f"pid {one.pid} {one.command} of {one.user}: {one.note}; gpubox reap {one.pid} ends it, after a question"
        for one in owned(snapshot.box.gpus, Owner.FOREIGN)
        if one.note
    ]


def _left_behind(orphans: tuple[Orphan, ...]) -> list[str]:
    told = []
    for server in dict.fromkeys(orphan.server for orphan in orphans):
        left = [orphan for orphan in orphans if orphan.server == server]
        pids = ", ".join(str(orphan.pid) for orphan in left)
        host = memory(sum(orphan.host_bytes for orphan in left))
        told.append(f"× {server} left pid {pids} behind, with {host} of the host's memory: gpubox reap ends it")
    return told


def _gpu_row(gpu: Gpu) -> tuple[str, ...]:
    return (
        str(gpu.index),
        short_gpu_name(gpu.name),
        f"{shown(gpu.memory_used_bytes, gib)}/{shown(gpu.memory_total_bytes, gib)}",
        shown(gpu.utilization, percent),
        shown(gpu.temperature_c, lambda value: f"{value}°C"),
        f"{shown(gpu.power_w, lambda value: f'{value:.0f}')}/{shown(gpu.power_limit_w, lambda value: f'{value:.0f}')}",
        "; ".join(part for part in (gpu.holder or _foreign(gpu), gpu.refusal) if part) or "free",
    )


def _foreign(gpu: Gpu) -> str:
    if isinstance(gpu.processes, Missing):
        return ""
    orphans = dict.fromkeys(f"orphan of {p.server}" for p in gpu.processes if p.owner is Owner.ORPHAN)
    others = [f"pid {p.pid} {p.command} ({p.user})" for p in gpu.processes if p.kind == "compute" and not p.server]
    return ", ".join([*orphans, *others])


def _server_row(server: Server, now: float) -> tuple[str, ...]:
    metrics = None if isinstance(server.metrics, Missing) else server.metrics
    began = server.ready_at or (server.launched_at if server.foreign else None)
    waiting = shown(metrics.waiting if metrics else None, str)
    return (
        server.name,
        f"{state_text(server, now)} · by hand" if server.foreign else state_text(server, now),
        fit(server.served_name, 32),
        indices(server.gpu_indices) or "cpu",
        str(server.port),
        shown(metrics.kv_cache_usage if metrics else None, percent),
        shown(metrics.generation_tokens_per_s if metrics else None, count),
        f"{shown(metrics.running if metrics else None, str)}/{waiting}",
        duration(now - began) if began and server.is_live else NOTHING,
    )


def state_text(server: Server, now: float) -> str:
    """Say a server's state with what it is at: 'starting · weights 33% · 0:12'."""
    if start := start_text(server, now):
        wedged = wedged_text(server.progress) if server.progress is not None else ""
        return f"starting · {wedged or start}"
    if server.state is ServerState.QUEUED and server.stage is not None and server.stage.detail:
        return f"queued · {server.stage.detail}"
    if server.state is ServerState.BACKOFF and server.retry_at:
        return f"backoff · again in {max(0.0, server.retry_at - now):.0f} s"
    words = state_words(server, now)
    return f"{words} · {idle_text(server.idle, now)}" if server.idle is not None else words
