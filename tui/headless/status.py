"""`gpubox status`: the box and its servers at one moment, from the keeper's snapshot."""

from __future__ import annotations

import json
import sys
import time

from backends.offline import snapshot_now
from backends.snapshots import Gpu, Missing, Server, ServerState, Snapshot, dump
from tui.format import NOTHING, count, duration, fit, gib, indices, percent, short_gpu_name, shown
from tui.headless.output import table

WATCH_S = 1.0


def status(*, as_json: bool, watch: bool) -> int:
    """Print the state once, or once a second until interrupted."""
    try:
        while True:
            snapshot = snapshot_now()
            text = dump(snapshot).decode() if as_json else "\n".join(lines(snapshot, time.time()))
            if watch and not as_json and sys.stdout.isatty():
                text = f"\x1b[H\x1b[2J{text}"
            print(json.dumps(json.loads(text), indent=None if watch else 2) if as_json else text, flush=True)
            if not watch:
                return 0
            time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return 0


def lines(snapshot: Snapshot, now: float) -> list[str]:
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
    if not snapshot.servers:
        return [*head, "no server yet; start one: gpubox --headless --profile demo   (profiles: gpubox profiles list)"]
    heads = ("SERVER", "STATE", "MODEL", "GPUS", "PORT", "KV", "TOK/S", "RUN/WAIT", "UP")
    head.append(table(heads, [_server_row(server, now) for server in snapshot.servers], right=(4, 5, 6, 7, 8)))
    head += [f"{s.name}: {s.cause}\n  log: {s.log_path}" for s in snapshot.servers if s.cause]
    return head


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
    return ", ".join(
        f"pid {p.pid} {p.command} ({p.user})" for p in gpu.processes if p.kind == "compute" and not p.server
    )


def _server_row(server: Server, now: float) -> tuple[str, ...]:
    metrics = None if isinstance(server.metrics, Missing) else server.metrics
    waiting = shown(metrics.waiting if metrics else None, str)
    return (
        server.name,
        state_text(server, now),
        fit(server.served_name, 32),
        indices(server.gpu_indices) or "cpu",
        str(server.port),
        shown(metrics.kv_cache_usage if metrics else None, percent),
        shown(metrics.generation_tokens_per_s if metrics else None, count),
        f"{shown(metrics.running if metrics else None, str)}/{waiting}",
        duration(now - server.ready_at) if server.ready_at and server.is_live else NOTHING,
    )


def state_text(server: Server, now: float) -> str:
    """Say a server's state with what it is at: 'starting · weights 33% · 0:12'."""
    stage = server.stage
    if server.state is ServerState.STARTING and stage is not None:
        done = f" {percent(stage.progress)}" if stage.progress is not None else ""
        return f"starting · {stage.name}{done} · {duration(now - stage.since)}"
    if server.state is ServerState.BACKOFF and server.retry_at:
        return f"backoff · again in {max(0.0, server.retry_at - now):.0f} s"
    return str(server.state)
