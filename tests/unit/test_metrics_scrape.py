"""Reading `/metrics` pages: a real one, older vLLM's names, several ranks, and everything that is no page."""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import fields
from pathlib import Path

import pytest

from backends.metrics.scrape import MAX_PAGE_BYTES, Page, parse
from backends.snapshots import Missing

PAGES = Path(__file__).parents[1] / "data" / "metrics"
REAL = (PAGES / "vllm-0.26-h200.txt").read_bytes()


def page(body: bytes | str) -> Page:
    read = parse(body.encode() if isinstance(body, str) else body)
    assert isinstance(read, Page), read
    return read


def refusal(body: bytes) -> str:
    read = parse(body)
    assert isinstance(read, Missing), read
    return read.reason


def test_a_real_page() -> None:
    read = page(REAL)
    assert (read.running, read.waiting, read.kv_cache_usage) == (0, 0, 0)
    assert (read.prompt_tokens, read.generation_tokens, read.requests) == (9, 18, 3)
    assert (read.prefix_queries, read.prefix_hits, read.preemptions) == (9, 0, 0)
    assert read.kv_cache_tokens == 792_544
    assert read.sleep_state == "awake"
    assert read.itl is not None
    assert read.itl.bounds[0] == 0.01
    assert math.isinf(read.itl.bounds[-1])
    assert read.itl.count == 15
    assert read.itl.total == pytest.approx(0.065389179)
    assert read.ttft is not None
    assert read.ttft.cumulative[:5] == (0, 0, 0, 2, 3)
    assert read.e2e is not None
    assert read.e2e.bounds[0] == 0.3


def test_a_page_of_a_newer_version_tells_every_figure_too() -> None:
    read = page((PAGES / "vllm-0.32-cpu.txt").read_bytes())
    assert [field.name for field in fields(read) if getattr(read, field.name) is None] == ["prefix_hit_rate"]
    assert (read.kv_cache_tokens, read.generation_tokens, read.requests) == (1_048_576, 50, 2)
    assert read.ttft is not None
    assert read.ttft.count == 3, "the third request was aborted"


def test_names_of_older_versions() -> None:
    old = REAL
    for new_name, old_name in (
        (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
        (b"vllm:prefix_cache_", b"vllm:gpu_prefix_cache_"),
        (b"vllm:inter_token_latency_seconds", b"vllm:time_per_output_token_seconds"),
    ):
        assert new_name in old
        old = old.replace(new_name, old_name)
    assert page(old) == page(REAL)


def test_the_new_name_wins_where_a_version_exports_both() -> None:
    read = page('vllm:gpu_cache_usage_perc{engine="0"} 0.9\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n')
    assert read.kv_cache_usage == 0.25


def test_counters_with_and_without_total() -> None:
    assert page("vllm:prompt_tokens_total 12\n").prompt_tokens == 12
    assert page("vllm:prompt_tokens 12\n").prompt_tokens == 12


def test_neighbours_of_a_name_are_not_taken_for_it() -> None:
    read = page(
        "vllm:prompt_tokens_total 5\nvllm:prompt_tokens_created 1.79e9\nvllm:prompt_tokens_cached_total 3\n"
        'vllm:prompt_tokens_by_source_total{source="local_compute"} 7\nvllm:external_prefix_cache_queries_total 4\n'
        'vllm:num_requests_waiting_by_reason{reason="capacity"} 2\nother:vllm:num_requests_running 1\n'
    )
    assert (read.prompt_tokens, read.prefix_queries, read.waiting, read.running) == (5, None, None, None)


def test_v0_reports_its_own_hit_rate_and_minus_one_when_caching_is_off() -> None:
    assert page('vllm:gpu_prefix_cache_hit_rate{model_name="m"} 0.4\n').prefix_hit_rate == 0.4
    assert page('vllm:gpu_prefix_cache_hit_rate{model_name="m"} -1.0\n').prefix_hit_rate is None


def test_data_parallel_ranks_are_added_up() -> None:
    second = REAL.replace(b'engine="0"', b'engine="1"').replace(
        b'kv_cache_usage_perc{engine="1",model_name="m7b"} 0.0',
        b'kv_cache_usage_perc{engine="1",model_name="m7b"} 0.5',
    )
    one, both = page(REAL), page(REAL + second)
    assert both.generation_tokens == 36
    assert both.kv_cache_usage == 0.25
    assert both.kv_cache_tokens == 2 * 792_544
    assert both.sleep_state == "awake"
    assert one.ttft is not None
    assert both.ttft is not None
    assert both.ttft.cumulative == tuple(2 * count for count in one.ttft.cumulative)


def test_kv_cache_size_from_blocks_where_tokens_are_not_stated() -> None:
    labels = 'block_size="16",num_gpu_blocks="{}"'
    assert page(f"vllm:cache_config_info{{{labels.format(100)}}} 1\n").kv_cache_tokens == 1600
    assert page(f"vllm:cache_config_info{{{labels.format('None')}}} 1\n").kv_cache_tokens is None


def test_sleep_state_of_ranks_that_disagree() -> None:
    asleep = REAL.replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0')
    asleep = asleep.replace(b'sleep_state="weights_offloaded"} 0.0', b'sleep_state="weights_offloaded"} 1.0')
    assert page(asleep).sleep_state == "weights_offloaded"
    assert page(REAL + asleep.replace(b'engine="0"', b'engine="1"')).sleep_state == "awake,weights_offloaded"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"<!doctype html><html>502</html>\n", "not a metrics page"),
        (b'{"detail":"Not Found"}\n', "not a metrics page"),
        (b"python_info 1.0\n", "no vLLM metrics"),
        (bytes(range(256)) * 10 + b"\n", "no vLLM metrics"),
        (REAL[: len(REAL) // 2], "cut short"),
        (b"vllm:num_requests_running 1\n" * 200_000, "too many samples"),
        (REAL * 1000, "longer than 8 MB"),
    ],
    ids=["empty", "blank", "html", "json", "other", "binary", "cut", "samples", "50 MB"],
)
def test_what_is_no_page_says_why(body: bytes, reason: str) -> None:
    assert reason in refusal(body)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "", "many", "1_0", "9" * 5000])
def test_an_unreadable_line_loses_its_figure_only(value: str) -> None:
    read = page(
        f'vllm:num_requests_running{{engine="0"}} 1\nvllm:num_requests_running{{engine="1"}} {value}\n'
        + "vllm:prompt_tokens_total 3\n"
    )
    assert read.running is None
    assert read.prompt_tokens == 3


def test_a_histogram_with_an_unreadable_bucket_is_not_half_read() -> None:
    line = b'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="m7b"} 3.0\n'
    assert line in REAL
    read = page(REAL.replace(line, line.replace(b'le="0.25"', b"le=0.25")))
    assert read.ttft is None
    assert read.itl is not None
    no_last = re.sub(rb'vllm:time_to_first_token_seconds_bucket\{engine="0",le="\+Inf".*\n', b"", REAL)
    assert page(no_last).ttft is None


def test_damaged_pages_never_raise_and_are_read_in_bounded_time() -> None:
    rng = random.Random(7)
    wanted = b"\n".join(line for line in REAL.split(b"\n") if line.startswith(b"vllm:")) + b"\n"
    for _ in range(150):
        body = bytearray(wanted)
        for _ in range(rng.randrange(1, 40)):
            body[rng.randrange(len(body))] = rng.choice(b'{}",=\\ \n\x00\xff-9e_le')
        assert isinstance(parse(bytes(body)), Page | Missing)
    labels = b",".join(b'a%d="%d"' % (i, i) for i in range(400_000))
    begun = time.perf_counter()
    parse(b"vllm:num_requests_running{" + labels[: MAX_PAGE_BYTES - 100] + b"} 1\n")
    assert time.perf_counter() - begun < 30
