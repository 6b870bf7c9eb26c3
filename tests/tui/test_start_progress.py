"""A start on screen and in a terminal: what it is at, what is left, what it looks stuck on."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import pytest

from backends.snapshots import ModelKind, Server, ServerState, ServerUpdate
from backends.starts import Stage, StageTime, StartFigures, StartProgress, gpu_words
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.format import clock_time
from tui.headless.launch import StageLine, ready_lines, start_line
from tui.progress import figures_text, left_short, left_text, start_text, took_text, wedged_text
from tui.themes import Palette
from tui.widgets.server_details import server_details

PALETTE = Palette(*["#000000"] * 10)
DONE = (StageTime("boot", 6.2), StageTime("config", 7.14))


def a_start(**progress: Any) -> Server:
    server = next(one for one in FakeLink().state.servers if one.state is ServerState.STARTING)
    told: dict[str, Any] = {"at": NOW, "done": DONE, "ratio": 0.4, "eta_s": 40.0, "based_on": 3} | progress
    return replace(server, stage=Stage("weights", NOW - 10, 0.62, "shard 5 of 8"), progress=StartProgress(**told))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.31, "0.3 s"), (61.4, "61 s"), (99.4, "99 s"), (99.6, "1:40"), (122.2, "2:02"), (3780.0, "1h 03m")],
)
def test_how_long_a_start_took_is_written_in_one_way(seconds: float, text: str) -> None:
    assert took_text(seconds) == text
    server = replace(a_start(), state=ServerState.READY, launched_at=NOW, ready_at=NOW + seconds)
    if seconds >= 60:
        assert f"ready in {text}" in server_details(server, NOW, 80, PALETTE).plain
        assert ready_lines(server)[0].startswith(f"{server.name} is ready after {text}: ")


def test_gpus_are_named_so_that_they_can_be_counted() -> None:
    assert [gpu_words(indices) for indices in ((), (3,), (0, 1), (0, 1, 5))] == [
        "the CPU",
        "GPU 3",
        "GPUs 0 and 1",
        "GPUs 0, 1 and 5",
    ]


def test_memory_that_is_not_known_yet_gets_no_line() -> None:
    server = replace(a_start(), figures=StartFigures(max_model_len=16_384))
    assert "memory" not in server_details(server, NOW, 80, PALETTE).plain
    told = replace(server, figures=StartFigures(weights_bytes=6 << 30, non_torch_bytes=61 << 20, graphs_bytes=0))
    assert "memory    weights 6.0 GiB · non-torch 61 MiB" in server_details(told, NOW, 80, PALETTE).plain
    assert "graphs" not in server_details(told, NOW, 80, PALETTE).plain


@pytest.mark.parametrize(
    ("eta_s", "later_s", "text", "short"),
    [
        (40.0, 0.0, "about 40 s left", "~40 s"),
        (40.0, 22.0, "about 20 s left", "~20 s"),
        (5.0, 0.0, "a few seconds left", "~5 s"),
        (100.0, 0.0, "about 2 min left", "~2 min"),
        (59.0, 0.0, "about 1 min left", "~1 min"),
        (7000.0, 0.0, "about 2 h left", "~2 h"),
        (4.0, 30.0, "a little longer than usual", ""),
        (None, 0.0, "a little longer than usual", ""),
    ],
)
def test_what_is_left_in_words(eta_s: float | None, later_s: float, text: str, short: str) -> None:
    progress = StartProgress(NOW, ratio=0.5, eta_s=eta_s, based_on=2)
    assert left_text(progress, NOW + later_s) == text
    assert left_short(progress, NOW + later_s) == short


def test_without_earlier_starts_the_time_in_the_stage_is_told() -> None:
    server = a_start(ratio=None, eta_s=None, based_on=0)
    assert start_text(server, NOW) == "weights 62% · for 0:10"
    assert start_text(replace(server, state=ServerState.READY), NOW) == ""


def test_times_and_figures_in_words() -> None:
    assert [took_text(seconds) for seconds in (0.04, 12.1, 59.96, 79.4, 185.0)] == [
        "0.0 s",
        "12.1 s",
        "60 s",
        "79 s",
        "3:05",
    ]
    figures = StartFigures(weights_bytes=12 << 30, kv_tokens=791_808, max_concurrency=96.66, max_model_len=8192)
    assert figures_text(figures) == "weights 12.0 GiB · 791,808 tokens · 97 requests of 8,192 tokens at once"


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_a_start_says_what_is_left(size: tuple[int, int]) -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await pilot.press("2")
        link.show(a_start())
        await until(pilot, lambda: "◐ weights 62% ~40 s" in shown(pilot), "the row")
        await until(pilot, lambda: "shard 5 of 8 · time by 3 starts like it" in shown(pilot), "the details")
        about = " ".join(shown(pilot).split())
        assert ("weights 62% · about 40 s left" in shown(pilot).splitlines()[0]) is (size[0] > 100)
        assert "start ━━━━━━╸───────── weights 62% · about 40 s left" in about
        assert "stages boot 6.2 s · config 7.1 s" in about


def test_what_the_time_left_comes_from_is_told_without_a_detail_too() -> None:
    server = replace(a_start(), stage=Stage("weights", NOW - 10))
    about = server_details(server, NOW, 78, PALETTE).plain
    assert "estimate  by 3 starts like it" in about
    assert "doing" not in about


def test_an_engine_that_has_not_told_its_kind_is_not_called_unknown() -> None:
    unknown = replace(a_start(), engine_version=None, kind=ModelKind.UNKNOWN, max_model_len=None)
    assert "unknown" not in server_details(unknown, NOW, 78, PALETTE).plain


async def test_a_start_in_which_nothing_moves_is_told_with_what_it_waits_for() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.press("2")
        link.show(a_start(quiet_since=NOW - 130, waits_for="a connection to 10.0.0.1:443"))
        await until(pilot, lambda: "◐ looks wedged 2:10" in shown(pilot), "the row")
        since = clock_time(NOW - 130)
        assert f"looks wedged since {since} · waits for a connection to 10.0.0.1:443" in shown(pilot)
        link.say(ServerUpdate(a_start()))
        await until(pilot, lambda: "wedged" not in shown(pilot), "that it moves")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2


def test_without_a_terminal_each_stage_is_a_line_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    line = StageLine(lambda: NOW)
    at = clock_time(NOW)
    line.show(replace(a_start(done=()), stage=Stage("boot", NOW)))
    line.show(replace(a_start(done=DONE[:1]), stage=Stage("config", NOW)))
    line.show(replace(a_start(done=DONE[:1]), stage=Stage("config", NOW)))
    line.show(replace(a_start(done=DONE), stage=None, state=ServerState.READY))
    line.end()
    assert capsys.readouterr().err.splitlines() == [
        f"  {at} boot",
        f"  {at} boot 6.2 s",
        f"  {at} config",
        f"  {at} config 7.1 s",
    ]


def test_on_a_terminal_one_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("os.get_terminal_size", lambda _: type("Size", (), {"columns": 80}))
    line = StageLine(lambda: NOW)
    line.show(a_start(done=DONE[:1]))
    line.show(a_start())
    line.end()
    shown_line = "  ━━━━━━━━──────────── weights 62% · about 40 s left · shard 5 of 8"
    at, clear = clock_time(NOW), "\r\x1b[K"
    assert terminal.getvalue() == (
        f"{clear}  {at} boot 6.2 s\n{clear}{shown_line}{clear}  {at} config 7.1 s\n{clear}{shown_line}{clear}"
    )


def test_a_wedged_start_says_so_in_its_line() -> None:
    server = a_start(quiet_since=NOW - 130, waits_for="the other ranks")
    assert server.progress is not None
    assert wedged_text(server.progress) == f"looks wedged since {clock_time(NOW - 130)} · waits for the other ranks"
    assert wedged_text(server.progress) in start_line(server, NOW)


def test_another_launch_tells_its_stages_anew(capsys: pytest.CaptureFixture[str]) -> None:
    line = StageLine(lambda: NOW)
    line.show(a_start())
    line.show(replace(a_start(done=DONE[:1]), launched_at=NOW, stage=Stage("config", NOW)))
    assert capsys.readouterr().err.count("boot 6.2 s") == 2
