"""Figures as people read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.snapshots import Missing
from tui import format as f
from tui.widgets.bars import bar, faded, history


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (0.4, "0.4"),
        (7, "7"),
        (99.4, "99"),
        (999, "999"),
        (999.6, "1.0k"),
        (2563, "2.6k"),
        (9949, "9.9k"),
        (9960, "10k"),
        (999_400, "999k"),
        (999_600, "1.0M"),
        (23e6, "23M"),
        (5e9, "5.0G"),
    ],
)
def test_counts_take_five_cells_at_most(number: float, text: str) -> None:
    assert f.count(number) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0:00"), (3.9, "0:03"), (723, "12:03"), (3599, "59:59"), (11_640, "3h 14m"), (190_000, "2d 4h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert f.duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(5 * f.MIB, "5 MiB"), (f.GIB, "1.0 GiB"), (139.8 * f.GIB, "139.8 GiB"), (2015 * f.GIB, "1.97 TiB")],
)
def test_memory_has_the_unit_that_suits_it(amount: float, text: str) -> None:
    assert f.memory(amount) == text


def test_nothing_is_a_dash_never_a_zero() -> None:
    assert f.shown(Missing("why"), f.percent) == "–"
    assert f.shown(None, f.percent) == "–"
    assert f.shown(0.0, f.percent) == "0%"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada Generation"),
        ("Tesla T4", "T4"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("80GB", "80GB"),
    ],
)
def test_gpu_names_lose_what_all_of_them_say(name: str, short: str) -> None:
    assert f.short_gpu_name(name) == short


def test_indices_are_ranges() -> None:
    assert f.indices([7, 0, 1, 2, 5]) == "0-2,5,7"
    assert f.indices([]) == ""


def test_a_path_is_cut_from_the_left_and_home_is_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    path = "/home/ann/.local/state/gpubox/0123456789ab/logs/demo-20261121-123000.log"
    assert f.fit_path(path, 80) == "~" + path.removeprefix("/home/ann")
    assert f.fit_path(path, 34) == "…/logs/demo-20261121-123000.log"
    assert f.fit_path(path, 30) == "…/demo-20261121-123000.log"
    assert f.fit_path(path, 10) == "demo-2026…"
    assert f.fit_path("/home/anna/x", 80) == "/home/anna/x"
    assert f.fit_path(str(Path("/")), 5) == "/"


@pytest.mark.parametrize("width", [0, 1, 2, 5, 40])
@pytest.mark.parametrize("text", ["", "a", "exactly", "a longer text than fits"])
def test_fit_never_takes_more_than_its_width(text: str, width: int) -> None:
    assert len(f.fit(text, width)) <= width
    assert f.fit(text, width) == text or len(text) > width


@pytest.mark.parametrize("ratio", [-1.0, 0.0, 0.001, 0.33, 0.5, 0.999, 1.0, 7.0])
@pytest.mark.parametrize("width", [1, 4, 10, 41])
def test_a_bar_takes_exactly_its_width(ratio: float, width: int) -> None:
    assert bar(ratio, width, "green", "white").cell_len == width


def test_a_bar_shows_that_there_is_a_little_and_that_there_is_nothing_to_read() -> None:
    assert bar(0.0, 10, "green", "white").plain == "─" * 10
    assert bar(0.001, 10, "green", "white").plain == "╸" + "─" * 9
    assert bar(0.5, 10, "green", "white").plain == "━" * 5 + "─" * 5
    assert bar(1.0, 10, "green", "white").plain == "━" * 10
    assert bar(Missing("why"), 10, "green", "white").plain == "┈" * 10


def test_a_history_keeps_peaks_and_leaves_gaps_blank() -> None:
    values = [0.0] * 99 + [1.0] + [None] * 20 + [0.5] * 80
    top, bottom = history(values, 20, 2, 1.0)
    assert top == " " * 9 + "█" + " " * 10
    assert bottom == "▁" * 9 + "█" + "  " + "█" * 8
    assert history([], 4, 2, 1.0) == ["    ", "    "]
    assert history([1.0, 0.5], 4, 1, 1.0) == ["  █▄"]
    assert history([3.0], 1, 1, 0.0) == [" "]


def test_a_chart_fades_towards_its_foot() -> None:
    rows = [faded("#ffffff", "#000000", row, 3) for row in range(3)]
    assert rows == ["#ffffff", "#bfbfbf", "#7f7f7f"]


def test_one_thing_is_no_things() -> None:
    assert [f.counted(number, "request") for number in (0, 1, 2, 2600)] == [
        "0 requests",
        "1 request",
        "2 requests",
        "2.6k requests",
    ]
