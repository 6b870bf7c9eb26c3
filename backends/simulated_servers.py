"""A simulated server's life: its state, figures and log at any moment, as pure functions of time.

Nothing here is measured; the timeline of a start follows a real one on an H200, and the figures only have to be
plausible and the same each time they are asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from backends.snapshots import Latency, Metrics, Missing, ModelKind, Server, ServerState
from backends.starts import Card, Exit, Stage, StageTime, StartFigures, StartProgress
from backends.switches import Idle, Level, Sleep

START = (
    ("config", 4.0, ""),
    ("engine", 9.0, ""),
    ("weights", 16.0, "shard {done} of 8"),
    ("compile", 14.0, ""),
    ("kv cache", 2.0, ""),
    ("cuda graphs", 12.0, ""),
    ("warm-up", 4.0, ""),
)
"""The stages of a start, and how many seconds each takes; those with a count or a bar tell their progress."""

START_S = sum(seconds for _, seconds, _ in START)
FAIL_S = 21.0
DRAIN_S = 2.0
STOP_S = 3.0
SLEEP_FIRST_S = 8.7
STEADY_EVERY_S = 10.0
WITH_PROGRESS = ("weights", "cuda graphs")
GIB = 1 << 30
HELD_BYTES = 125.8 * GIB
"""What a server holds of an H200, the GPU that is simulated unless another is asked for."""

ASLEEP_SHARE = 0.013
"""What is left of that GPU's memory to one that sleeps: 1.8 GB."""


@dataclass(frozen=True, slots=True)
class Nap:
    """A sleep: when it began and was reached, and, where it was woken, when that began and was over."""

    level: Level
    began_at: float
    asleep_at: float
    woken_at: float = math.inf
    awake_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Life:
    """One simulated launch: what was asked for, and when it was asked to stop; `pace` is its full tok/s, `load` 0–1."""

    name: str
    profile: str
    engine: str
    model: str
    kind: ModelKind
    gpus: tuple[str, ...]
    gpu_indices: tuple[int, ...]
    port: int
    launched_at: float
    log_path: str
    max_model_len: int = 8192
    pace: float = 2400.0
    load: float = 0.0
    fails_with: str | None = None
    card: Card | None = None
    stop_asked_at: float | None = None
    stop_forced: bool = False
    can_sleep: bool = False
    ttl_s: float | None = None
    naps: tuple[Nap, ...] = ()

    @property
    def pid(self) -> int:
        """A process id that stays the same for one launch."""
        return 20_000 + crc32(f"{self.name}{self.launched_at:.0f}".encode()) % 40_000

    @property
    def ready_at(self) -> float:
        """When the start is over, if it is not stopped before."""
        return self.launched_at + START_S

    @property
    def stop_from(self) -> float | None:
        """When SIGTERM is sent: after draining, where there was something to drain."""
        if self.stop_asked_at is None:
            return None
        served = self.stop_asked_at >= self.ready_at and _nap_state(self, self.stop_asked_at) is None
        drains = not self.stop_forced and served
        return self.stop_asked_at + (DRAIN_S if drains else 0.0)

    @property
    def ended_at(self) -> float | None:
        """When its process is gone: by a stop, or by its own failure."""
        if self.stop_from is not None:
            return self.stop_from + (0.5 if self.stop_forced else STOP_S)
        return self.launched_at + FAIL_S if self.fails_with else None


def wave(key: str, at: float) -> float:
    """Return a number of 0–1 that wanders with time, differently for each key."""
    phase = crc32(key.encode()) / 2**32 * math.tau
    return 0.5 + 0.28 * math.sin(at / 97 + phase) + 0.15 * math.sin(at / 23 + 2 * phase) + 0.07 * math.sin(at / 5.3)


def _waved_s(key: str, since: float, at: float) -> float:
    """Return the integral of `wave` from `since` to `at`, so that totals fit their rates."""
    phase = crc32(key.encode()) / 2**32 * math.tau

    def antiderivative(t: float) -> float:
        slow, middle = 0.28 * 97 * math.cos(t / 97 + phase), 0.15 * 23 * math.cos(t / 23 + 2 * phase)
        return 0.5 * t - slow - middle - 0.07 * 5.3 * math.cos(t / 5.3)

    return antiderivative(at) - antiderivative(since)


def state_at(life: Life, at: float) -> tuple[ServerState, float]:
    """Return the state at `at`, and since when."""
    if life.ended_at is not None and at >= life.ended_at:
        return (ServerState.STOPPED if life.stop_asked_at else ServerState.FAILED), life.ended_at
    if life.stop_from is not None and life.stop_asked_at is not None and at >= life.stop_asked_at:
        if at < life.stop_from:
            return ServerState.DRAINING, life.stop_asked_at
        return ServerState.STOPPING, life.stop_from
    if at >= life.ready_at:
        return _nap_state(life, at) or (ServerState.READY, _serves_since(life, at))
    return ServerState.STARTING, life.launched_at


def _nap_state(life: Life, at: float) -> tuple[ServerState, float] | None:
    nap = next((one for one in reversed(life.naps) if one.began_at <= at), None)
    if nap is None or at >= nap.awake_at:
        return None
    if at < nap.asleep_at:
        return ServerState.FALLING_ASLEEP, nap.began_at
    return (ServerState.SLEEPING, nap.asleep_at) if at < nap.woken_at else (ServerState.WAKING, nap.woken_at)


def _serves_since(life: Life, at: float) -> float:
    return max((nap.awake_at for nap in life.naps if nap.awake_at <= at), default=life.ready_at)


def idle_at(life: Life, at: float) -> Idle | None:
    """Return when a server that sleeps by itself has last worked; None where it does not, or does not serve."""
    if life.ttl_s is None or state_at(life, at)[0] is not ServerState.READY:
        return None
    return Idle(life.ttl_s, None if life.load else _serves_since(life, at))


def host_bytes_at(life: Life, at: float) -> int:
    """Return what a server has pinned of host memory by `at`: twice its weights since it first slept at level 1."""
    pinned = any(nap.level == 1 and nap.asleep_at <= at for nap in life.naps)
    ended = state_at(life, at)[0] in (ServerState.STOPPED, ServerState.FAILED)
    return 2 * weights_bytes(life) if pinned and not ended else 0


def weights_bytes(life: Life) -> int:
    """Return the size of a server's weights, over all its GPUs."""
    return round(_memory(life)[0]) * max(1, len(life.gpus))


def stage_at(life: Life, at: float) -> Stage:
    """Return what a start is doing at `at`."""
    since = life.launched_at
    for name, seconds, detail in START:
        if at < since + seconds or name == START[-1][0]:
            share = min((at - since) / seconds, 1.0) if name in WITH_PROGRESS else None
            return Stage(name, since, share, detail.format(done=int(8 * (share or 0))))
        since += seconds
    raise AssertionError("a start has stages")


def progress_at(life: Life, at: float) -> StartProgress:
    """Return how far a start is at `at`, as if three like it had been seen before."""
    over, done = life.launched_at, []
    for name, seconds, _ in START:
        over += seconds
        if over <= at:
            done.append(StageTime(name, seconds))
    spent = min(START_S, max(0.0, at - life.launched_at))
    left = START_S - spent
    return StartProgress(at, tuple(done), spent / START_S, left or None, based_on=3, compile_cached=True)


def figures_at(life: Life, at: float) -> StartFigures | None:
    """Return what its log has told by `at` of its memory."""
    if life.fails_with or at < life.launched_at + sum(seconds for _, seconds, _ in START[:5]):
        return None
    weights, kv_bytes, tokens = _memory(life)
    return StartFigures(
        weights_bytes=round(weights),
        activation_bytes=round(1.12 * GIB),
        non_torch_bytes=round(0.22 * GIB),
        graphs_bytes=round(0.89 * GIB) if at >= life.ready_at else None,
        kv_available_bytes=round(kv_bytes),
        kv_tokens=tokens,
        max_concurrency=tokens / life.max_model_len,
        max_model_len=life.max_model_len,
    )


def _memory(life: Life) -> tuple[float, float, int]:
    """Return the bytes of weights and of KV cache on each GPU, and how many tokens all of the KV cache has room for."""
    named = re.search(r"(\d+(?:\.\d+)?)b\b", life.model.lower())
    billions, gpus = float(named[1] if named else 7), max(1, len(life.gpus))
    weights = billions * 2e9 / gpus
    kv_bytes = max(0.0, HELD_BYTES - weights - 2.6 * GIB)
    token_bytes = 57_344 if billions < 10 else 196_608 if billions < 40 else 327_680
    return weights, kv_bytes, int(kv_bytes * gpus / token_bytes) // 16 * 16


def load_at(life: Life, at: float) -> float:
    """Return how busy a ready server is, 0–1."""
    return life.load * (0.45 + 0.55 * wave(life.name, at)) if state_at(life, at)[0] is ServerState.READY else 0.0


def memory_at(life: Life, at: float) -> float:
    """Return which share (0–1) of each of its GPUs' memory it holds."""
    state, _ = state_at(life, at)
    if state in (ServerState.STOPPED, ServerState.FAILED):
        return 0.0
    if state is ServerState.SLEEPING:
        return ASLEEP_SHARE
    if at >= life.ready_at:
        return 0.9
    stage = stage_at(life, at)
    if stage.name in ("config", "engine"):
        return 0.004
    return 0.12 * (stage.progress or 0.0) if stage.name == "weights" else 0.13 if stage.name == "compile" else 0.9


def server_at(life: Life, at: float) -> Server:
    """Return the server as the keeper would show it at `at`."""
    state, since = state_at(life, at)
    started = state is ServerState.STARTING
    ended = state in (ServerState.STOPPED, ServerState.FAILED)
    was_ready = life.fails_with is None and (life.stop_asked_at is None or life.stop_asked_at >= life.ready_at)
    return Server(
        name=life.name,
        profile=life.profile,
        engine=life.engine,
        engine_version="0.26.0" if life.engine == "vllm" else "5.1.0",
        model=life.model,
        served_name=life.model.rsplit("/", 1)[-1],
        kind=life.kind,
        state=state,
        state_since=since,
        gpus=life.gpus,
        gpu_indices=life.gpu_indices,
        host="127.0.0.1",
        port=life.port,
        launched_at=life.launched_at,
        ready_at=life.ready_at if was_ready and at >= life.ready_at else None,
        log_path=life.log_path,
        stage=stage_at(life, at) if started else None,
        pid=None if ended else life.pid,
        max_model_len=life.max_model_len,
        exit=_exit_of(life, state, since) if ended else None,
        cause=life.fails_with if state is ServerState.FAILED else None,
        card=life.card if state is ServerState.FAILED else None,
        progress=progress_at(life, at) if started or state is ServerState.READY else None,
        figures=figures_at(life, at),
        metrics=metrics_at(life, at),
        can_sleep=life.can_sleep,
        sleep=Sleep(life.naps[-1].level, since) if state is ServerState.SLEEPING else None,
        idle=idle_at(life, at),
        host_bytes=host_bytes_at(life, at),
    )


def _exit_of(life: Life, state: ServerState, at: float) -> Exit:
    if state is ServerState.FAILED:
        return Exit(at, code=1, signal=None, asked=False)
    return Exit(at, code=None if life.stop_forced else 0, signal=9 if life.stop_forced else None, asked=True)


def metrics_at(life: Life, at: float) -> Metrics | Missing:
    """Return the figures a ready server would show at `at`."""
    state = state_at(life, at)[0]
    if state is not ServerState.READY:
        return Missing("the server sleeps" if state is ServerState.SLEEPING else "the server is not ready")
    load = load_at(life, at)
    speed, served_s = life.pace * load, life.load * 0.45 * (at - life.ready_at)
    generated = life.pace * (served_s + life.load * 0.55 * _waved_s(life.name, life.ready_at, at))
    waiting = max(0, round((load - 0.72) * 40))
    requests = int(generated / 190)
    return Metrics(
        at=at,
        kv_cache_usage=min(0.97, 0.9 * load + 0.02) if load else 0.0,
        running=round(load * 52),
        waiting=waiting,
        prompt_tokens_per_s=speed * 3.1,
        generation_tokens_per_s=speed,
        prompt_tokens_total=int(generated * 3.1),
        generation_tokens_total=int(generated),
        prefix_cache_hit_rate=0.38 + 0.25 * wave(life.name + "hits", at) if load else Missing("no queries yet"),
        preemptions_total=int((at - life.ready_at) / 1800 * max(0.0, life.load - 0.6) * 10),
        requests_total=requests,
        ttft=_latency(0.055 + 0.11 * load + 0.2 * (waiting > 0), load, 0.001),
        itl=_latency(0.012 + 0.016 * load, load, 0.01),
        e2e=_latency(2.4 + 3.2 * load, load, 0.3),
        kv_cache_tokens=_memory(life)[2],
        sleep_state="awake",
    )


def _latency(typical_s: float, load: float, floor_s: float) -> Latency:
    if not load:
        return Latency(0, None, None, None, None, floor_s)
    return Latency(round(load * 420), typical_s * 1.12, typical_s, typical_s * 1.9, typical_s * 3.4, floor_s)


def log_lines(life: Life, since: float, until: float) -> Iterator[tuple[float, str]]:
    """Yield the lines that the log got in `[since, until)`, each with its time."""
    for at, text in _start_lines(life):
        if since <= at < until and (life.ended_at is None or at < life.ended_at):
            yield at, text
    steady_until = min(until, life.stop_asked_at or until) if life.fails_with is None else 0.0
    number = max(1, math.ceil((since - life.ready_at) / STEADY_EVERY_S))
    while (at := life.ready_at + number * STEADY_EVERY_S) < steady_until:
        if at >= since:
            yield at, _steady_line(life, at)
        number += 1
    for at, text in [*_nap_lines(life), *_end_lines(life)]:
        if since <= at < until:
            yield at, text


def _start_lines(life: Life) -> list[tuple[float, str]]:
    core = f"(EngineCore pid={life.pid + 167}) INFO"
    texts = {
        "config": f"(APIServer pid={life.pid}) INFO [api_utils.py:273] non-default args: {{'model': '{life.model}'}}",
        "engine": f"{core} [core.py:116] Initializing a V1 LLM engine (v0.26.0) with config: model='{life.model}'",
        "weights": f"{core} [model_runner.py:284] Loading model from scratch...",
        "compile": f"{core} [backends.py:1155] Dynamo bytecode transform time: 3.67 s",
        "kv cache": f"{core} [kv_cache_utils.py:2177] GPU KV cache size: {_memory(life)[2]:,} tokens",
        "cuda graphs": f"{core} Capturing CUDA graphs (FULL):  10%|█         | 5/51",
        "warm-up": f"{core} [core.py:340] init engine (profile, create kv cache, warmup model) took 41.30 s",
    }
    lines = [(life.launched_at, f"gpubox: {life.name}: vllm serve {life.model} --port {life.port} (pid {life.pid})")]
    at = life.launched_at
    for name, seconds, _ in START:
        lines.append((at + 0.2, texts[name]))
        if name == "weights":
            lines += [
                (at + seconds * n / 8, f"Loading safetensors checkpoint shards: {n * 100 // 8}% Completed | {n}/8")
                for n in range(1, 9)
            ]
        at += seconds
    return [*lines, (life.ready_at, f"(APIServer pid={life.pid}) INFO:     Application startup complete.")]


def _steady_line(life: Life, at: float) -> str:
    load = load_at(life, at)
    return (
        f"(APIServer pid={life.pid}) INFO [loggers.py:257] Engine 000: "
        f"Avg prompt throughput: {life.pace * 3.1 * load:.1f} tokens/s, "
        f"Avg generation throughput: {life.pace * load:.1f} tokens/s, Running: {round(load * 52)} reqs, "
        f"Waiting: {max(0, round((load - 0.72) * 40))} reqs, GPU KV cache usage: {90 * load:.1f}%"
    )


def _nap_lines(life: Life) -> Iterator[tuple[float, str]]:
    core = f"(EngineCore pid={life.pid + 167}) INFO"
    freed, left = HELD_BYTES * (1 - ASLEEP_SHARE / 0.9) / GIB, ASLEEP_SHARE * HELD_BYTES / 0.9 / GIB
    for nap in life.naps:
        took_s = nap.asleep_at - nap.began_at
        yield (nap.asleep_at, f"{core} Sleep mode freed {freed:.2f} GiB memory, {left:.2f} GiB memory is still in use.")
        yield (nap.asleep_at, f"{core} It took {took_s:.6f} seconds to fall asleep.")
        if nap.awake_at < math.inf:
            yield (nap.awake_at, f"{core} It took {nap.awake_at - nap.woken_at:.6f} seconds to wake up.")


def _end_lines(life: Life) -> list[tuple[float, str]]:
    if life.ended_at is None:
        return []
    if life.stop_from is not None:
        how = "killed by SIGKILL, as asked" if life.stop_forced else "ended with code 0, as asked"
        return [(life.stop_from, "gpubox: stopping"), (life.ended_at, f"gpubox: {how}")]
    at = life.ended_at - 1
    return [
        (at, f"(EngineCore pid={life.pid + 167}) ERROR [core.py:1102] EngineCore failed to start."),
        (at + 0.1, f"(EngineCore pid={life.pid + 167}) ERROR [core.py:1102] {life.fails_with}"),
        (
            at + 0.2,
            f"(APIServer pid={life.pid}) RuntimeError: Engine core initialization failed. See root cause above.",
        ),
        (life.ended_at, "gpubox: ended with code 1, which nobody asked for"),
    ]
