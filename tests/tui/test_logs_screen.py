"""The logs panel by its keys, over real files."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input

from backends.processes.logs import LogStart, log_starts
from backends.settings import Settings
from backends.snapshots import Foreign, ServerState
from backends.starts import Stage
from tests.tui.logs_stage import NOW, STAMP, StillKeeper, a_server, opened, write
from tui.app import GpuboxApp


async def test_it_follows_until_one_scrolls_up_and_again_with_g(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 100)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 99")
        write(log, 100, 102)
        await screen.until_last("line 101")
        await pilot.press("up")
        await screen.until_last("line 100")
        write(log, 102, 107)
        await screen.until(lambda: "5 new lines · G to follow" in screen.said("#foot"), "five new lines")
        assert screen.rows()[-1].endswith("line 100")
        await pilot.press("G")
        await screen.until_last("line 106")
        assert "following" in screen.said("#foot")
        write(log, 107, 108)
        await screen.until_last("line 107")


async def test_every_way_up_stops_following_and_the_way_down_ends_in_following(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 100)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 99")
        for key in ("up", "k", "pageup", "home", "g"):
            await pilot.press("G", key)
            assert not screen.view.following, key
        await screen.until(lambda: screen.rows()[0].endswith(" line 0"), "the first line")
        for _ in range(6):
            await pilot.press("pagedown")
        await screen.until_last("line 99")
        assert screen.view.following


@pytest.mark.usefixtures("own_garbage")
async def test_200_000_lines_cost_the_loop_no_more_than_2_000(tmp_path: Path) -> None:
    """The longest stall of the loop, in its thread's own CPU time, is that of drawing; none grows with the file."""
    small_s = await longest_stall_s(tmp_path, 2_000)
    big_s = await longest_stall_s(tmp_path, 200_000)
    assert big_s < 3 * small_s + 0.2


async def longest_stall_s(tmp_path: Path, lines: int) -> float:
    log = tmp_path / f"demo-20261121-12{lines // 1000:04}.log"
    write(log, 0, lines)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(120, 40)) as pilot:
        longest_s = 0.0

        async def watch() -> None:
            nonlocal longest_s
            while True:
                begun = time.thread_time()  # Of this thread alone: other programs' work is not ours.
                await asyncio.sleep(0.005)
                longest_s = max(longest_s, time.thread_time() - begun)

        screen = await opened(pilot)
        watching = asyncio.create_task(watch())
        await screen.until_last(f"line {lines - 1}")
        await pilot.press("home")
        await screen.until(lambda: screen.rows()[0].endswith(" line 0"), "the first line")
        await pilot.press("slash", *"line 1234$", "enter")
        await screen.until(lambda: "1 of 1" in screen.said("#foot"), "the only match")
        await screen.until(lambda: any(row.endswith(" line 1234") for row in screen.rows()), "the match in view")
        watching.cancel()
        return longest_s


async def test_a_search_marks_counts_and_walks(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 400)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 399")
        await pilot.press("slash", *"LINE 7", "enter")
        await screen.until(lambda: "no match" in screen.said("#foot"), "no match for capitals")
        await pilot.press("slash")
        app.screen.query_one(Input).value = ""
        await pilot.press(*"line .7$", "enter")
        await screen.until(lambda: "9 of 9" in screen.said("#foot"), "the last of nine")
        assert app.focused is screen.view
        await pilot.press("n")
        await screen.until(lambda: "1 of 9" in screen.said("#foot"), "around to the first")
        await screen.until(lambda: any(row.endswith(" line 17") for row in screen.rows()), "line 17")
        await pilot.press("N", "N")
        await screen.until(lambda: "8 of 9" in screen.said("#foot"), "and back")
        with log.open("a") as file:
            file.write(f"{STAMP}line 47\n")
        await screen.until(lambda: "8 of 10" in screen.said("#foot"), "a new match")
        await pilot.press("escape")
        assert "of 10" not in screen.said("#foot")


async def test_an_invalid_expression_gets_one_line_and_keys_in_the_search_only_type(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 10)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log), a_server("other", None)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 9")
        await pilot.press("slash", *"1q[(", "enter")
        offered = {one.binding.id for one in app.screen.active_bindings.values() if one.enabled and one.binding.show}
        assert "logs.end_search" in offered
        assert not offered & {"logs.search", "logs.time"}, "they only type now"
        assert app.screen.query_one(Input).value == "1q[("
        assert app.current_mode == "logs"
        assert app.selected == "demo"
        assert screen.said("#foot").startswith("no regular expression: ")
        assert "\n" not in screen.said("#foot")
        await pilot.press("escape")
        assert app.focused is screen.view
        assert "regular" not in screen.said("#foot")


async def test_older_starts_can_be_browsed_and_a_new_start_is_shown_by_itself(tmp_path: Path) -> None:
    logs = [tmp_path / f"demo-20261121-12300{number}.log" for number in range(3)]
    for number, log in enumerate(logs[:2]):
        write(log, number * 10, number * 10 + 10)
    keeper = StillKeeper(tmp_path, a_server("demo", logs[1]))
    app = GpuboxApp(keeper)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 19")
        await screen.until(lambda: "start 2 of 2" in screen.said("#head"), "two starts")
        await pilot.press("comma")
        await screen.until_last("line 9")
        assert "start 1 of 2" in screen.said("#head")
        await pilot.press("comma", "full_stop", "full_stop")
        await screen.until_last("line 19")
        write(logs[2], 20, 30)
        keeper.tell(a_server("demo", logs[2]))
        await screen.until_last("line 29")
        await screen.until(lambda: "start 3 of 3" in screen.said("#head"), "three starts")
        await pilot.press("comma")
        await screen.until_last("line 19")


async def test_other_servers_and_what_to_press_where_there_is_nothing(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 10)
    keeper = StillKeeper(tmp_path)
    app = GpuboxApp(keeper)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "Press 2" in screen.said("#empty"), "what to press without a server")
        keeper.tell(a_server("demo", log), a_server("new", None, ServerState.STOPPED))
        await screen.until_last("line 9")
        await pilot.press("right_square_bracket")
        await screen.until(lambda: "new has no log yet" in screen.said("#empty"), "no log yet")
        assert not screen.view.display
        missing = a_server("new", tmp_path / "new-20261121-120000.log", ServerState.FAILED)
        keeper.tell(a_server("demo", log), missing)
        await screen.until(lambda: "not there any more" in screen.said("#empty"), "a log that is gone")
        await pilot.press("left_square_bracket")
        await screen.until_last("line 9")


async def test_the_stage_of_a_start_and_the_cause_of_a_failure_stand_below(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 10)
    starting = replace(
        a_server("demo", log, ServerState.STARTING),
        launched_at=NOW - 83,
        stage=Stage("weights", NOW - 12, 0.5, "shard 4 of 8"),
    )
    keeper = StillKeeper(tmp_path, starting)
    app = GpuboxApp(keeper, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 9")
        for part in ("weights", "50%", "0:12 of 1:23 since launch", "shard 4 of 8"):
            assert part in screen.said("#stage")
        keeper.tell(replace(starting, state=ServerState.FAILED, stage=None, cause="CUDA out of memory"))
        await screen.until(lambda: "failed  CUDA out of memory" in screen.said("#stage"), "the cause")
        keeper.tell(replace(starting, state=ServerState.READY, stage=None))
        await screen.until(lambda: not app.screen.query_one("#stage").has_class("-shown"), "no stage")


async def test_long_lines_wrap_scroll_sideways_and_unfold(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 50)
    with log.open("a") as file:
        file.write(f"{STAMP}(EngineCore pid=7) INFO 11-21 12:34:56 [core.py:116] {'word ' * 400}the end\n")
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.rows()[-1].startswith("12:34:56.789 EngineCore word"), "the long line")
        assert screen.rows()[-1].endswith("›")
        await pilot.press("right", "l", "left")
        assert screen.view.scroll_offset.x == 16
        screen.view.action_sideways(1000)
        await screen.until(lambda: screen.rows()[-1].endswith("the end"), "its end")
        await pilot.press("w")
        await screen.until(lambda: screen.rows()[-1].strip() == "end", "its end, wrapped")
        assert screen.view.following
        # More than a view high, it is scrolled row by row: no row of it is out of reach.
        seen = list(screen.rows())
        for _ in range(60):
            await pilot.press("up")
            seen.insert(0, screen.rows()[0])
        text = "\n".join(seen)
        assert "line 48" in text
        assert sum(row.count("word") for row in seen) == 400
        await pilot.press("G", "w", "t")
        await screen.until(lambda: "(EngineCore pid=7) INFO 11-21" in screen.rows()[-1], "the whole line")


async def test_a_hidden_screen_reads_nothing(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 10)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 9")
        view = screen.view
        await pilot.press("1")
        write(log, 10, 20)
        await pilot.pause(0.4)  # Nothing is to happen, so there is nothing to wait for.
        assert view.status.extent.lines == 10
        await pilot.press("3")
        await screen.until_last("line 19")


async def test_the_reading_thread_ends_with_the_app(tmp_path: Path) -> None:
    log = tmp_path / "ending-20261121-123000.log"
    write(log, 0, 10)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("ending", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 9")
    deadline = time.monotonic() + 20
    while any("ending" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_starts_that_are_found_late_belong_to_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 10)
    looking, go_on = threading.Event(), threading.Event()

    def slowly(folder: Path, name: str) -> list[LogStart]:
        looking.set()
        assert go_on.wait(20)
        return log_starts(folder, name)

    by_hand = replace(a_server("vllm-8000", None), foreign=Foreign(4711, 1, "alice", "vllm serve m"))
    monkeypatch.setattr("tui.screens.logs.log_starts", slowly)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log), by_hand))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(looking.is_set, "the look for starts")
        await pilot.press("right_square_bracket")
        await screen.until(lambda: "not started by gpubox" in screen.said("#empty"), "nothing to be read")
        go_on.set()
        await app.workers.wait_for_complete([one for one in app.workers if one.group == "starts"])
        await pilot.pause()
        assert "not started by gpubox" in screen.said("#empty")
        assert not screen.view.paths


async def test_texts_name_the_keys_that_were_given(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 100)
    settings = Settings(keys={"log.follow": ("f9",), "logs.end_search": ("f10",)})
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)), settings=settings)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 99")
        await pilot.press("up")
        await screen.until(lambda: "paused · F9 to follow" in screen.said("#foot"), "the key to follow")
        await pilot.press("slash")
        assert app.screen.query_one(Input).placeholder.endswith("Enter · F10")
        await pilot.press("f10", "f9")
        assert screen.view.following
