"""The charts' axes: round ticks, one column for one moment in every chart, marks where things happened."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from backends.simulation import SimulatedKeeper
from backends.snapshots import Event
from tui.themes import Palette
from tui.widgets.metric_axis import COUNT, MEMORY, PERCENT, POWER, TIME, TimeAxis, Unit, scale_for
from tui.widgets.metric_marks import mark_cell, marks_of, placed, told_at
from tui.widgets.metric_plot import area, lines
from tui.widgets.metric_times import times_line

NOW = 1_795_264_500.0
PALETTE = Palette(*["#000000"] * 10)


@pytest.mark.parametrize(
    ("peak", "rows", "unit", "top", "ticks"),
    [
        (0.3, 2, PERCENT, 1.0, ["100%", "0%"]),
        (0.3, 4, PERCENT, 1.0, ["100%", "50%", "0%"]),
        (3.0, 12, COUNT, None, ["3", "2", "1", "0"]),
        (137.0, 10, COUNT, None, ["150", "100", "50", "0"]),
        (24.0, 10, COUNT, None, ["25", "20", "15", "10", "5", "0"]),
        (0.492, 10, TIME, None, ["500ms", "400ms", "300ms", "200ms", "100ms", "0"]),
        (1050.0, 10, POWER, None, ["1250W", "1000W", "750W", "500W", "250W", "0"]),
        (1050.0, 4, POWER, None, ["1200W", "600W", "0"]),
        (1050.0, 10, POWER, 1400.0, ["1400W", "1050W", "700W", "350W", "0"]),
        (1500.0, 10, POWER, 1400.0, ["1500W", "1000W", "500W", "0"]),
        (71.5 * 2**30, 10, MEMORY, 140.4 * 2**30, ["140G", "105G", "70G", "35G", "0"]),
        (0.444, 2, TIME, None, ["500ms", "0"]),
        (0.0, 4, COUNT, None, ["1", "0"]),
        (0.0, 4, MEMORY, float(140 << 30), ["140G", "70G", "0"]),
    ],
)
def test_ticks_are_few_and_round(peak: float, rows: int, unit: Unit, top: float | None, ticks: list[str]) -> None:
    scale = scale_for(peak, rows, unit, top)
    labels = scale.labels(rows)
    assert len(labels) == rows
    assert (labels[0] != "", labels[-1] != "") == (True, True)
    assert [label for label in labels if label] == ticks
    assert scale.top >= peak


def test_a_moment_has_one_column_whatever_the_window_and_moves_left_with_time() -> None:
    for window_s in (60.0, 300.0, 900.0, 3600.0):
        axis = TimeAxis(NOW, window_s, 31)
        assert axis.cell_of(NOW) == 30
        assert axis.cell_of(NOW - window_s * 2) is None
        assert axis.cell_of(NOW + window_s) is None
        for cell in range(31):
            assert axis.cell_of(axis.middle_of(cell)) == cell
        later = replace(axis, now=NOW + 3 * axis.step_s)
        assert later.cell_of(axis.middle_of(20)) == 17
        assert len(axis.labels()) == 31
        assert axis.labels().endswith("now")


@pytest.mark.parametrize("cursor", range(31))
def test_the_moment_of_the_cursor_never_runs_into_another_time(cursor: int) -> None:
    axis = TimeAxis(NOW, 300.0, 31)
    moment = f"{datetime.fromtimestamp(axis.middle_of(cursor)):%H:%M:%S}"
    times = times_line(axis, {}, cursor, [0], PALETTE).plain.split()
    assert moment in times
    assert set(times) - {moment} <= set(axis.labels().split()), "no time is cut"


def test_zero_and_gap_differ_and_lines_break_at_gaps() -> None:
    assert area([0.0, None, 1.0], 1, 1.0) == ["▁ █"]
    assert area([0.001, 1.0], 2, 1.0) == [" █", "▁█"]
    (row,) = lines([[1.0, 1.0, None, None, 1.0, 1.0]], 1, 1.0)
    assert row[1] == " "
    assert row[0] == row[2] == "⠉"
    (dotted,) = lines([[None] * 4, [1.0] * 4], 1, 1.0)
    assert dotted == "⠁⠁"


def test_marks_of_a_launch_and_of_events_are_placed_and_found() -> None:
    server = SimulatedKeeper(clock=lambda: NOW).snapshot().servers[0]
    server = replace(server, launched_at=NOW - 200, ready_at=NOW - 140)
    events = (
        Event(NOW - 139, server.name, "ready", "ready in 61 s"),
        Event(NOW - 50, server.name, "loadtest", "load test began"),
        Event(NOW - 20, "another", "failed", "failed"),
    )
    marks = marks_of(server, events)
    assert [(mark.kind, mark.sign) for mark in marks] == [("started", "▲"), ("ready", "●"), ("loadtest", "◆")]
    axis = TimeAxis(NOW, 300.0, 60)
    assert len(placed(marks, axis)) == 3
    ready = axis.cell_of(NOW - 139)
    assert ready is not None
    assert "ready in 61 s" in told_at(marks, axis, ready)
    assert mark_cell(marks, axis, ready, 1) == axis.cell_of(NOW - 50)
    assert mark_cell(marks, axis, ready, -1) == axis.cell_of(NOW - 200)
    assert mark_cell(marks, axis, 59, 1) is None
