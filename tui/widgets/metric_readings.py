"""What the charts of the metrics panel say, and which lines of the history they draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from backends.snapshots import Gpu, Host, Latency, Metrics, Missing
from tui.format import NOTHING, count, counted, gib, gpu_kinds, indices, percent, plural
from tui.themes import MEMORY_LEVELS
from tui.widgets.metric_axis import COUNT, MEMORY, PERCENT, POWER, RATE, TIME, Unit

Tone = Literal["text", "warn", "bad", "dim"]
Source = Literal["server", "gpus", "host"]
NO_SAMPLES = "no request in the last minute"
ALARM = 0.95


@dataclass(frozen=True, slots=True)
class Chart:
    """One line of a chart: the series' name; full height is `top`, or else a round value above its own peak.

    Of a counter that `grows` it is drawn what it grew by. `show` says a value of it with its unit.
    """

    series: str
    unit: Unit
    show: Callable[[float], str]
    top: float | None = None
    grows: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure above its chart; `label` says in small letters which one it is."""

    value: str
    chart: Chart
    label: str = ""
    tone: Tone = "text"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one chart shows: its title with what belongs to it, and its figures, all on one scale.

    `key` is that of its explanation, `source` says whose history its lines are.
    """

    key: str
    title: str
    figures: tuple[Figure, ...]
    detail: str = ""
    source: Source = "server"


Told = Missing | tuple[str, tuple[Figure, ...]]
"""Why there is nothing, or a detail for the title and the figures."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A chart of one of an engine's figures, or of a few that belong together."""

    key: str
    title: str
    charts: tuple[Chart, ...]
    read: Callable[[Metrics], Told]

    def reading(self, metrics: Metrics | Missing) -> Reading:
        """Return what the chart says: figures, or '–' and why; why there are none at all is not its matter."""
        told = Missing("") if isinstance(metrics, Missing) else self.read(metrics)
        if isinstance(told, Missing):
            return Reading(
                self.key, self.title, tuple(Figure(NOTHING, chart, tone="dim") for chart in self.charts), told.reason
            )
        return Reading(self.key, self.title, told[1], told[0])


def latency_s(seconds: float) -> str:
    """Show a latency: '0.4 ms', '12 ms', '2.40 s', '75 s'."""
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s" if seconds < 59.95 else f"{seconds:.0f} s"


def percentile(seconds: float, floor_s: float) -> str:
    """Show a percentile; within the first bucket no more is known of it than that it is below the bucket's bound."""
    return f"<{floor_s * 1000:g} ms" if seconds <= floor_s else latency_s(seconds)


def tokens_per_s(rate: float) -> str:
    """Show a rate of tokens: '2.3k tok/s'."""
    return f"{count(rate)} tok/s"


def gibibytes(amount_bytes: float) -> str:
    """Show bytes as '125.9 GiB'."""
    return f"{gib(amount_bytes)} GiB"


def watts(power_w: float) -> str:
    """Show power: '412 W', '5.31 kW'."""
    return f"{power_w:.0f} W" if power_w < 9_999.5 else f"{power_w / 1000:.2f} kW"


def share(ratio: float) -> str:
    """Show a ratio: '71%', and '2.1%' where a whole number would hide it."""
    return f"{ratio * 100:.1f}%" if 0 < ratio < 0.0995 else percent(ratio)


def _line(name: str, which: str, floor_s: float = 0.0) -> Chart:
    show = latency_s if which == "mean" else partial(percentile, floor_s=floor_s)
    return Chart(f"{name}_{which}_s", TIME, show)


def _latency(name: str, latency: Latency | Missing) -> Told:
    """Draw p50 and p99; where the p50 lies in the first bucket, the mean is what is known better, and drawn instead."""
    if isinstance(latency, Missing):
        return latency
    if latency.p50_s is None or latency.p99_s is None:
        return Missing(NO_SAMPLES)
    floor_s, mean_s = latency.floor_s, latency.mean_s
    about = "≈" if latency.rough else ""
    typical, high = (about + percentile(value, floor_s) for value in (latency.p50_s, latency.p99_s))
    figures = (Figure(typical, _line(name, "p50", floor_s), "p50"), Figure(high, _line(name, "p99", floor_s), "p99"))
    if mean_s is None:
        return "", figures
    if latency.p50_s > floor_s:
        return f"mean {latency_s(mean_s)}", figures
    return f"p50 {typical}", (Figure(latency_s(mean_s), _line(name, "mean"), "mean"), figures[1])


def _latency_metric(name: str, title: str, read: Callable[[Metrics], Latency | Missing]) -> Metric:
    charts = (_line(name, "p50"), _line(name, "p99"))
    return Metric(name, title, charts, lambda metrics: _latency(name, read(metrics)))


_KV_CACHE = Chart("kv_cache_usage", PERCENT, share, 1.0)
_RUNNING, _WAITING = Chart("running", COUNT, count), Chart("waiting", COUNT, count)
_OUT = Chart("generation_tokens_per_s", RATE, tokens_per_s)
_IN = Chart("prompt_tokens_per_s", RATE, tokens_per_s)
_HITS = Chart("prefix_cache_hit_rate", PERCENT, share, 1.0)
_PREEMPTIONS = Chart("preemptions_total", COUNT, count, grows=True)


def _kv_cache(metrics: Metrics) -> Told:
    usage, tokens = metrics.kv_cache_usage, metrics.kv_cache_tokens
    if isinstance(usage, Missing):
        return usage
    tone: Tone = "text" if usage < MEMORY_LEVELS[1] else "warn" if usage < ALARM else "bad"
    detail = "" if isinstance(tokens, Missing) else f"of {counted(tokens, 'token')}"
    return detail, (Figure(share(usage), _KV_CACHE, "", tone),)


def _requests(metrics: Metrics) -> Told:
    running, waiting = metrics.running, metrics.waiting
    if isinstance(running, Missing):
        return running
    queue = Figure(NOTHING, _WAITING, "waiting", "dim")
    if not isinstance(waiting, Missing):
        queue = Figure(f"{waiting:,}", _WAITING, "waiting", "warn" if waiting else "text")
    total = metrics.requests_total
    detail = "" if isinstance(total, Missing) else f"{count(total)} finished"
    return detail, (Figure(f"{running:,}", _RUNNING, "running"), queue)


def _rate(chart: Chart, rate: float | Missing, total: int | Missing) -> Told:
    if isinstance(rate, Missing):
        return rate
    return "" if isinstance(total, Missing) else f"{counted(total, 'token')} in all", (Figure(chart.show(rate), chart),)


def _hit_rate(metrics: Metrics) -> Told:
    rate = metrics.prefix_cache_hit_rate
    return rate if isinstance(rate, Missing) else ("in the last minute", (Figure(share(rate), _HITS),))


def _preemptions(metrics: Metrics) -> Told:
    total = metrics.preemptions_total
    if isinstance(total, Missing):
        return total
    tone: Tone = "warn" if total else "text"
    return "", (Figure(f"{total:,}", _PREEMPTIONS, "since the start", tone),)


METRICS = (
    Metric("kv_cache_usage", "KV cache usage", (_KV_CACHE,), _kv_cache),
    Metric("running", "Requests", (_RUNNING, _WAITING), _requests),
    Metric(
        "generation_tokens_per_s",
        "Generation",
        (_OUT,),
        lambda metrics: _rate(_OUT, metrics.generation_tokens_per_s, metrics.generation_tokens_total),
    ),
    Metric(
        "prompt_tokens_per_s",
        "Prompt",
        (_IN,),
        lambda metrics: _rate(_IN, metrics.prompt_tokens_per_s, metrics.prompt_tokens_total),
    ),
    _latency_metric("ttft", "TTFT", lambda metrics: metrics.ttft),
    _latency_metric("itl", "ITL", lambda metrics: metrics.itl),
    _latency_metric("e2e", "E2E latency", lambda metrics: metrics.e2e),
    Metric("prefix_cache_hit_rate", "Prefix-cache hits", (_HITS,), _hit_rate),
    Metric("preemptions_total", "Preemptions", (_PREEMPTIONS,), _preemptions),
)
"""The charts of an engine's figures, in the order in which one looks for them."""


def read_gpus(gpus: Sequence[Gpu]) -> tuple[Reading, ...]:
    """Return memory, utilization and power of a server's GPUs: of several the most and the least, and power in sum."""
    which = f"GPU {gpus[0].index}" if len(gpus) == 1 else f"GPUs {indices(gpu.index for gpu in gpus)}"
    totals, limits = _known([gpu.memory_total_bytes for gpu in gpus]), _known([gpu.power_limit_w for gpu in gpus])
    of = f"{which} · {gpu_kinds(gpus)}"
    memory = (f"{of} · {gib(max(totals))} GiB" if totals else of), MEMORY, gibibytes, max(totals, default=None)
    power = [gpu.power_w for gpu in gpus]
    drawn = Chart("power_w_sum", POWER, watts, sum(limits) if len(limits) == len(gpus) else None)
    known_w, sum_of = _known(power), "" if len(gpus) == 1 else f"of {plural(len(gpus), 'GPU')}"
    total_w = Figure(watts(sum(known_w)), drawn, sum_of) if len(known_w) == len(gpus) else _nothing(drawn, sum_of)
    return (
        _spread("memory_used_bytes", "GPU memory", [gpu.memory_used_bytes for gpu in gpus], *memory),
        _spread("utilization", "GPU utilization", [gpu.utilization for gpu in gpus], of, PERCENT, percent, 1.0),
        Reading("power_w", "GPU power", (total_w,), _reason(power) or of, "gpus"),
    )


def _spread(
    key: str,
    title: str,
    values: Sequence[float | Missing],
    of: str,
    unit: Unit,
    show: Callable[[float], str],
    top: float | None,
) -> Reading:
    """Show one value, or the most and the least of several; they are one where they read alike."""
    high, low = (Chart(f"{key}_{which}", unit, show, top) for which in ("high", "low"))
    known, detail = _known(values), _reason(values) or of
    if len(values) == 1:
        return Reading(key, title, (Figure(show(known[0]), high) if known else _nothing(high, ""),), detail, "gpus")
    if not known:
        return Reading(key, title, (_nothing(high, "most"), _nothing(low, "least")), detail, "gpus")
    figures = Figure(show(max(known)), high, "most"), Figure(show(min(known)), low, "least")
    return Reading(key, title, figures, detail, "gpus")


def read_host(host: Host) -> tuple[Reading, ...]:
    """Return the box's CPU and memory, for a server that runs on no GPU."""
    cpu, total = host.cpu_utilization, host.memory_total_bytes
    used = total - host.memory_available_bytes
    busy = Chart("cpu_utilization", PERCENT, percent, 1.0)
    taken = Chart("memory_used_bytes", MEMORY, gibibytes, float(total))
    cores = f"of {host.cpu_count} cores"
    return (
        Reading(
            "cpu_utilization",
            "CPU of the box",
            (_nothing(busy, cores) if isinstance(cpu, Missing) else Figure(percent(cpu), busy, cores),),
            cpu.reason if isinstance(cpu, Missing) else "",
            "host",
        ),
        Reading(
            "memory_available_bytes",
            "Memory of the box",
            (Figure(gibibytes(used), taken, f"of {gib(total)}"),),
            "",
            "host",
        ),
    )


def host_figures(host: Host) -> dict[str, float | None]:
    """Return the box's figures that are drawn over time."""
    cpu = host.cpu_utilization
    used = host.memory_total_bytes - host.memory_available_bytes
    return {"cpu_utilization": None if isinstance(cpu, Missing) else cpu, "memory_used_bytes": float(used)}


def _nothing(chart: Chart, label: str) -> Figure:
    return Figure(NOTHING, chart, label, "dim")


def _known(values: Sequence[float | Missing]) -> list[float]:
    return [float(value) for value in values if not isinstance(value, Missing)]


def _reason(values: Sequence[float | Missing]) -> str:
    return next((value.reason for value in values if isinstance(value, Missing)), "")
