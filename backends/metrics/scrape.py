"""Read a vLLM `/metrics` page: only the families gpubox shows, of any vLLM version, summed over the engine's ranks.

A page has ~600 lines and prometheus_client takes 8 ms for it; keeping the wanted lines first makes that ~1 ms.
Old names (before vLLM 0.12, and V0's) are read where the new ones are absent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from prometheus_client.parser import text_string_to_metric_families

from backends.snapshots import Missing

MAX_PAGE_BYTES = 8 << 20
"""A page is ~50 KB an engine rank; what is longer than this is no metrics page."""

MAX_WANTED_BYTES = 2 << 20
"""The wanted lines are ~8 KB a rank: room for hundreds of ranks, and a bound on the time spent on a hostile page."""

MAX_LINE_CHARACTERS = 8192
"""The longest line, `cache_config_info`, has ~900; the parser's time is quadratic in a line's labels."""

_KV_CACHE_USAGE = ("kv_cache_usage_perc", "gpu_cache_usage_perc")
_RUNNING = ("num_requests_running",)
_WAITING = ("num_requests_waiting",)
_PROMPT_TOKENS = ("prompt_tokens",)
_GENERATION_TOKENS = ("generation_tokens",)
_PREFIX_QUERIES = ("prefix_cache_queries", "gpu_prefix_cache_queries")
_PREFIX_HITS = ("prefix_cache_hits", "gpu_prefix_cache_hits")
_PREFIX_HIT_RATE = ("gpu_prefix_cache_hit_rate",)
_PREEMPTIONS = ("num_preemptions",)
_REQUESTS = ("request_success",)
_TTFT = ("time_to_first_token_seconds",)
_ITL = ("inter_token_latency_seconds", "time_per_output_token_seconds")
_E2E = ("e2e_request_latency_seconds",)
_CACHE_CONFIG = "cache_config_info"
_SLEEP_STATE = "engine_sleep_state"

_VALUES = (
    *(_KV_CACHE_USAGE + _RUNNING + _WAITING + _PROMPT_TOKENS + _GENERATION_TOKENS + _PREFIX_QUERIES + _PREFIX_HITS),
    *(_PREFIX_HIT_RATE + _PREEMPTIONS + _REQUESTS),
    *(_CACHE_CONFIG, _SLEEP_STATE),
)
_HISTOGRAMS = _TTFT + _ITL + _E2E
_WANTED = re.compile(
    rf"\nvllm:(({'|'.join(_VALUES)})(?:_total)?|({'|'.join(_HISTOGRAMS)})(?:_bucket|_count|_sum))(?=[{{\s])[^\n]*"
)
"""A whole line that is wanted: its sample's name, and the family as a plain value's or as a histogram's.

The line break before it, unlike `^`, is something that can be searched for quickly.
"""

_PLAIN = re.compile(r"[a-z0-9_:]+(\{[^{}\\]{0,1000}\}) ([0-9]{1,40}(?:\.[0-9]{1,40})?(?:e[+-]?[0-9]{1,2})?)")
"""Nearly every line, quick to read: labels without escapes, a plain number, no time."""

_Labels = Mapping[str, str]
_Samples = dict[str, list[tuple[_Labels, float]]]


@dataclass(frozen=True, slots=True)
class Histogram:
    """`cumulative[i]` samples were ≤ `bounds[i]` seconds; the last bound is infinite. `total` is the samples' sum."""

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    total: float | None

    @property
    def count(self) -> float:
        """How many samples it holds."""
        return self.cumulative[-1]


@dataclass(frozen=True, slots=True)
class Page:
    """One reading of an engine's figures since it started; None where the engine does not tell.

    Counters, requests and KV cache tokens are summed over data-parallel ranks; `kv_cache_usage` is their mean, which
    is the share of `kv_cache_tokens` in use since all ranks have equal caches. `sleep_state` is one word while the
    ranks agree, else all of them joined by commas. `prefix_hit_rate` is V0's own gauge.
    """

    kv_cache_usage: float | None
    running: float | None
    waiting: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    prefix_queries: float | None
    prefix_hits: float | None
    prefix_hit_rate: float | None
    preemptions: float | None
    requests: float | None
    ttft: Histogram | None
    itl: Histogram | None
    e2e: Histogram | None
    kv_cache_tokens: int | None
    sleep_state: str | None


def parse(body: bytes) -> Page | Missing:
    """Read a page in Prometheus' text format; whatever is not a whole vLLM page is Missing with the reason.

    A single unreadable line loses the figure that it belongs to, not the page: that figure is None.
    """
    if len(body) > MAX_PAGE_BYTES:
        return Missing(f"the metrics page is longer than {MAX_PAGE_BYTES >> 20} MB")
    if not body.strip():
        return Missing("the metrics page is empty")
    if body.lstrip()[:1] in (b"<", b"{"):
        return Missing("the engine's answer is not a metrics page")
    if not body.endswith(b"\n"):
        return Missing("the metrics page is cut short")
    wanted = list(_WANTED.finditer("\n" + body.decode("utf-8", "replace")))
    if not wanted:
        return Missing("no vLLM metrics on the page")
    if sum(match.end() - match.start() for match in wanted) > MAX_WANTED_BYTES:
        return Missing("the metrics page has too many samples")
    return _page(_samples(wanted))


def _samples(wanted: Iterable[re.Match[str]]) -> _Samples:
    """Parse the lines into samples by name (without `vllm:` and `_total`), without the unreadable families."""
    samples: _Samples = {}
    broken: set[str] = set()
    for match in wanted:
        line, whole, value, histogram = match.group(0, 1, 2, 3)
        family, name = value or histogram, value or whole
        sample = _sample(line[1:])
        if sample is None:
            broken.add(family)
        else:
            samples.setdefault(name, []).append(sample)
    for family in broken:
        for suffix in ("", "_bucket", "_count", "_sum"):
            samples.pop(family + suffix, None)
    return samples


def _sample(line: str) -> tuple[_Labels, float] | None:
    """Parse one line; None where it cannot be read, or where its value is not a finite number."""
    if len(line) > MAX_LINE_CHARACTERS:
        return None
    if (plain := _PLAIN.fullmatch(line)) is not None and (labels := _labels(plain[1])) is not None:
        return labels, float(plain[2])
    try:
        (metric,) = text_string_to_metric_families(line)
        (sample,) = metric.samples
        value = float(sample.value)
    except (ValueError, IndexError, OverflowError):
        return None
    return (sample.labels, value) if math.isfinite(value) else None


@lru_cache(maxsize=8192)
def _labels(text: str) -> _Labels | None:
    """Parse `{…}`; the same ones come again at each reading, and parsing them is most of a page's work."""
    try:
        (metric,) = text_string_to_metric_families(f"x{text} 0\n")
        (sample,) = metric.samples
    except (ValueError, IndexError, OverflowError):
        return None
    labels: _Labels = sample.labels
    return labels


def _page(samples: _Samples) -> Page:
    usage = _first(samples, _KV_CACHE_USAGE)
    hit_rates = [value for _, value in _first(samples, _PREFIX_HIT_RATE) if value >= 0]
    return Page(
        kv_cache_usage=_mean([value for _, value in usage]),
        running=_sum(samples, _RUNNING),
        waiting=_sum(samples, _WAITING),
        prompt_tokens=_sum(samples, _PROMPT_TOKENS),
        generation_tokens=_sum(samples, _GENERATION_TOKENS),
        prefix_queries=_sum(samples, _PREFIX_QUERIES),
        prefix_hits=_sum(samples, _PREFIX_HITS),
        prefix_hit_rate=_mean(hit_rates),
        preemptions=_sum(samples, _PREEMPTIONS),
        requests=_sum(samples, _REQUESTS),
        ttft=_histogram(samples, _TTFT),
        itl=_histogram(samples, _ITL),
        e2e=_histogram(samples, _E2E),
        kv_cache_tokens=_kv_cache_tokens([labels for labels, _ in samples.get(_CACHE_CONFIG, [])]),
        sleep_state=_sleep_state(samples.get(_SLEEP_STATE, [])),
    )


def _first(samples: _Samples, names: Iterable[str]) -> list[tuple[_Labels, float]]:
    """Return the samples of the first name that is on the page: versions in transition export both names."""
    return next((samples[name] for name in names if name in samples), [])


def _sum(samples: _Samples, names: Iterable[str]) -> float | None:
    found = _first(samples, names)
    return math.fsum(value for _, value in found) if found else None


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _histogram(samples: _Samples, names: Iterable[str]) -> Histogram | None:
    """Add up the ranks' buckets; None where the page has none, or not up to the infinite one."""
    for name in names:
        buckets: dict[float, float] = {}
        for labels, value in samples.get(f"{name}_bucket", []):
            try:
                bound = float(labels["le"])
            except (KeyError, ValueError):
                break
            buckets[bound] = buckets.get(bound, 0.0) + value
        else:
            if math.inf in buckets and len(buckets) > 1:
                bounds = tuple(sorted(buckets))
                return Histogram(bounds, tuple(buckets[bound] for bound in bounds), _sum(samples, (f"{name}_sum",)))
    return None


def _kv_cache_tokens(configs: list[_Labels]) -> int | None:
    tokens = 0
    for labels in configs:
        try:
            stated = labels.get("kv_cache_size_tokens", "")
            tokens += int(stated) if stated.isdigit() else int(labels["num_gpu_blocks"]) * int(labels["block_size"])
        except (KeyError, ValueError):
            return None
    return tokens or None


def _sleep_state(samples: list[tuple[_Labels, float]]) -> str | None:
    states = {labels.get("sleep_state", "") for labels, value in samples if value == 1} - {""}
    return ",".join(sorted(states)) or None
