"""The bar of a server's memory: its cells and its numbers, whatever is missing."""

from __future__ import annotations

import pytest

from backends.memory import Division, Kind, Part
from backends.snapshots import Missing
from tui.themes import Palette
from tui.widgets.metric_memory import memory_lines

GIB = 1 << 30
GREY = Palette(*["#808080"] * 10)
PARTS = (Part(Kind.WEIGHTS, 12 * GIB), Part(Kind.KV_CACHE, 40 * GIB), Part(Kind.GRAPHS, Missing("not told")))


@pytest.mark.parametrize("width", [20, 78, 198])
def test_the_bar_has_its_width_and_the_legend_its_numbers(width: int) -> None:
    division = Division(3, 80 * GIB, 60 * GIB, 5 * GIB, (*PARTS, Part(Kind.OTHER, 8 * GIB)))
    bar, legend = memory_lines(division, width, GREY).plain.split("\n")
    assert len(bar) == width
    assert len(legend) <= width + 2
    assert bar.startswith("GPU 3 █")
    assert bar.endswith(" 80.0 GiB")
    assert "█ weights 12.0" in legend
    if width >= 78:
        assert bar.count("▓") > 3 * bar.count("█") - 3
        assert "▚ graphs –" in legend
        assert "× not its own 5.0" in legend


def test_what_is_not_taken_yet_is_said_and_an_unknown_total_is_no_zero() -> None:
    unknown = Missing("not told")
    division = Division(None, unknown, unknown, unknown, (*PARTS, Part(Kind.OTHER, unknown)), excess_bytes=GIB)
    bar, legend = memory_lines(division, 78, GREY).plain.split("\n")
    assert "GiB" not in bar
    assert "░ other –" in legend
    assert "1.0 GiB not taken yet" in legend
