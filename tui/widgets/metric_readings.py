"""What the tiles of the metrics panel say, and which lines of the history they draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from backends.snapshots import Gpu, Host, Latency, Metrics, Missing
from tui.format import NOTHING, count, gib, percent, short_gpu_name
from tui.themes import MEMORY_LEVELS

Tone = Literal["text", "warn", "bad", "dim"]
Told = Missing | tuple[str, tuple[tuple[str, str, Tone], ...]]
"""Why there is nothing, or a detail for the title and each figure's value, label and tone."""

NO_SAMPLES = "no request in the last minute"
ALARM = 0.95


@dataclass(frozen=True, slots=True)
class Chart:
    """One line of a history: the series' name; full height is `top`, or else its own peak, which `show` then tells.

    Of a counter that `grows` it is drawn what it grew by.
    """

    series: str
    top: float | None = None
    grows: bool = False
    show: Callable[[float], str] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure above its chart; `label` says in small letters which one it is."""

    value: str
    chart: Chart
    label: str = ""
    tone: Tone = "text"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one tile shows: its title with what belongs to it, and its figures beside each other."""

    title: str
    figures: tuple[Figure, ...]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A tile for one of an engine's figures, or a few that belong together."""

    title: str
    charts: tuple[Chart, ...]
    read: Callable[[Metrics], Told]

    def reading(self, metrics: Metrics | Missing) -> Reading:
        """Return what the tile shows: figures, or '–' and why; why there are none at all is not its matter."""
        told = Missing("") if isinstance(metrics, Missing) else self.read(metrics)
        if isinstance(told, Missing):
            return Reading(self.title, tuple(Figure(NOTHING, chart, tone="dim") for chart in self.charts), told.reason)
        detail, figures = told
        return Reading(
            self.title,
            tuple(
                Figure(value, chart, label, tone)
                for (value, label, tone), chart in zip(figures, self.charts, strict=True)
            ),
            detail,
        )


def latency_s(seconds: float) -> str:
    """Show a latency: '0.4 ms', '12 ms', '2.40 s', '75 s'."""
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 59.95 else f"{seconds:.0f} s"


def percentile(seconds: float, floor_s: float) -> str:
    """Show a percentile; within the first bucket no more is known of it than that it is below the bucket's bound."""
    return f"<{floor_s * 1000:g} ms" if seconds <= floor_s else latency_s(seconds)


def _latency(latency: Latency | Missing, *, p99: bool = True) -> Told:
    if isinstance(latency, Missing):
        return latency
    if latency.p50_s is None or latency.p99_s is None:
        return Missing(NO_SAMPLES)
    figures: tuple[tuple[str, str, Tone], ...] = ((percentile(latency.p50_s, latency.floor_s), "p50", "text"),)
    mean = "" if latency.mean_s is None else f"mean {latency_s(latency.mean_s)}"
    high = percentile(latency.p99_s, latency.floor_s)
    if not p99:
        return f"p99 {high} · {mean}", figures
    return mean, (*figures, (high, "p99", "text"))


def _kv_cache(metrics: Metrics) -> Told:
    usage, tokens = metrics.kv_cache_usage, metrics.kv_cache_tokens
    if isinstance(usage, Missing):
        return usage
    tone: Tone = "text" if usage < MEMORY_LEVELS[1] else "warn" if usage < ALARM else "bad"
    return "" if isinstance(tokens, Missing) else f"of {count(tokens)} tokens", ((_share(usage), "", tone),)


def _requests(metrics: Metrics) -> Told:
    running, waiting = metrics.running, metrics.waiting
    if isinstance(running, Missing):
        return running
    queue: tuple[str, str, Tone] = (NOTHING, "waiting", "dim")
    if not isinstance(waiting, Missing):
        queue = (f"{waiting:,}", "waiting", "warn" if waiting else "text")
    return "", ((f"{running:,}", "running", "text"), queue)


def _rate(rate: float | Missing, total: int | Missing) -> Told:
    if isinstance(rate, Missing):
        return rate
    return "" if isinstance(total, Missing) else f"{count(total)} tokens in all", ((count(rate), "tok/s", "text"),)


def _hit_rate(metrics: Metrics) -> Told:
    rate = metrics.prefix_cache_hit_rate
    return rate if isinstance(rate, Missing) else ("", ((_share(rate), "in the last minute", "text"),))


def _preemptions(metrics: Metrics) -> Told:
    total = metrics.preemptions_total
    if isinstance(total, Missing):
        return total
    return "", ((f"{total:,}", "since the start", "warn" if total else "text"),)


METRICS = (
    Metric("KV cache usage", (Chart("kv_cache_usage", 1.0),), _kv_cache),
    Metric("Requests", (Chart("running", show=count), Chart("waiting", show=count)), _requests),
    Metric(
        "Generation",
        (Chart("generation_tokens_per_s", show=count),),
        lambda metrics: _rate(metrics.generation_tokens_per_s, metrics.generation_tokens_total),
    ),
    Metric(
        "Prompt",
        (Chart("prompt_tokens_per_s", show=count),),
        lambda metrics: _rate(metrics.prompt_tokens_per_s, metrics.prompt_tokens_total),
    ),
    Metric(
        "TTFT",
        (Chart("ttft_p50_s", show=latency_s), Chart("ttft_p99_s", show=latency_s)),
        lambda metrics: _latency(metrics.ttft),
    ),
    Metric(
        "ITL",
        (Chart("itl_p50_s", show=latency_s), Chart("itl_p99_s", show=latency_s)),
        lambda metrics: _latency(metrics.itl),
    ),
    Metric("E2E latency", (Chart("e2e_p50_s", show=latency_s),), lambda metrics: _latency(metrics.e2e, p99=False)),
    Metric("Prefix-cache hit rate", (Chart("prefix_cache_hit_rate", 1.0),), _hit_rate),
    Metric("Preemptions", (Chart("preemptions_total", grows=True),), _preemptions),
)
"""The tiles of a server, in the order in which one looks for them."""


def read_gpu(gpu: Gpu) -> Reading:
    """Return a GPU's memory, utilization and power."""
    total, limit = gpu.memory_total_bytes, gpu.power_limit_w
    readings = (gpu.memory_used_bytes, gpu.utilization, gpu.power_w)
    used, busy, power = readings
    figures = (
        _figure(used, lambda b: f"{gib(b)} GiB", Chart("memory_used_bytes", _known(total)), "used"),
        _figure(busy, percent, Chart("utilization", 1.0), "busy"),
        _figure(power, lambda watts: f"{watts:.0f} W", Chart("power_w", _known(limit)), ""),
    )
    why = next((one.reason for one in readings if isinstance(one, Missing)), "")
    parts = [short_gpu_name(gpu.name), why or ("" if isinstance(total, Missing) else f"{gib(total)} GiB")]
    return Reading(f"GPU {gpu.index}", figures, " · ".join(part for part in parts if part))


def read_host(host: Host) -> Reading:
    """Return the box's CPU and memory, for a server that runs on no GPU."""
    cpu, total = host.cpu_utilization, host.memory_total_bytes
    used = total - host.memory_available_bytes
    figures = (
        _figure(cpu, percent, Chart("cpu_utilization", 1.0), f"of {host.cpu_count} cores"),
        Figure(f"{gib(used)} GiB", Chart("memory_used_bytes", float(total)), f"of {gib(total)}"),
    )
    return Reading("CPU and memory of the box", figures, cpu.reason if isinstance(cpu, Missing) else "")


def host_figures(host: Host) -> dict[str, float | None]:
    """Return the box's figures that are drawn over time."""
    used = host.memory_total_bytes - host.memory_available_bytes
    return {"cpu_utilization": _known(host.cpu_utilization), "memory_used_bytes": float(used)}


def _figure(reading: float | Missing, how: Callable[[float], str], chart: Chart, label: str) -> Figure:
    if isinstance(reading, Missing):
        return Figure(NOTHING, chart, label, "dim")
    return Figure(how(reading), chart, label)


def _known(reading: float | Missing) -> float | None:
    return None if isinstance(reading, Missing) else float(reading)


def _share(ratio: float) -> str:
    return f"{ratio * 100:.1f}%" if 0 < ratio < 0.0995 else percent(ratio)
