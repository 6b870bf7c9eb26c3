"""What the logs panel's keys do to what is shown: filters, times, errors, copies, merged servers, earlier starts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tests.tui.logs_stage import NOW, STAMP, StillKeeper, a_server, alive, opened, write
from tui.app import GpuboxApp
from tui.screens.chooser import ChooserScreen
from tui.screens.logs import LogsScreen

LINES = [
    "(APIServer pid=1) INFO 11-21 12:00:00 [a.py:1] begins",
    "(EngineCore pid=2) WARNING 11-21 12:00:00 [c.py:1] careful",
    "  of this",
    "(EngineCore pid=2) ERROR 11-21 12:00:00 [c.py:1] broken",
    "(APIServer pid=1) INFO 11-21 12:00:00 [a.py:1] goes on",
]


def write_minutes(path: Path, rounds: int) -> None:
    """Write five lines a minute from 12:00 on."""
    with path.open("w") as file:
        for minute in range(rounds):
            for second, line in enumerate(LINES):
                file.write(f"2026-11-21T12:{minute:02}:{second:02}.000+00:00 {line} {minute}\n")


async def test_levels_and_processes_are_chosen_by_keys_and_escape_shows_all_again(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write_minutes(log, 40)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.rows()[-1].endswith("goes on 39"), "the end")
        await pilot.press("v", "v")
        await screen.until(lambda: screen.rows()[-1].endswith("ERROR broken 39"), "warnings and errors only")
        await screen.until(lambda: "WARNING+  120 of 200 lines" in screen.said("#head"), "how many")
        assert screen.rows()[-2].endswith("of this 39")
        await pilot.press("v", "v")
        await screen.until(lambda: "No line of CRITICAL so far" in screen.said("#empty"), "none so bad")
        await pilot.press("v", "p")
        assert isinstance(app.screen, ChooserScreen)
        await pilot.press("space", "enter")
        await screen.until(lambda: "APIServer  80 of 200 lines" in screen.said("#head"), "one process only")
        await pilot.press("escape")
        await screen.until(
            lambda: "  200 lines" in screen.said("#head") and "APIServer" not in screen.said("#head"), "all"
        )


async def test_times_and_errors_are_gone_to(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write_minutes(log, 40)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.rows()[-1].endswith("goes on 39"), "the end")
        await pilot.press("at", *"12:20", "enter")
        await screen.until(lambda: screen.rows()[0].endswith("begins 20"), "12:20")
        await screen.until(lambda: "line 101" in screen.said("#foot"), "its number")
        await pilot.press("at", *"-29m", "enter")
        await screen.until(lambda: screen.rows()[0].startswith("12:10"), "29 minutes before the end")
        await pilot.press("at", *"soon", "enter")
        await screen.until(lambda: "'soon' is no time" in screen.said("#foot"), "a complaint")
        await pilot.press("E")
        await screen.until(lambda: any(row.endswith("broken 0") for row in screen.rows()), "the first error")
        for _ in range(9):
            await pilot.press("E")
            await pilot.pause()
        await screen.until(lambda: not any(row.endswith("broken 0") for row in screen.rows()), "later errors")


async def test_a_line_or_marked_ones_are_copied_as_the_file_has_them(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 100)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 99")
        await pilot.press("y")
        assert screen.rows()[-1].startswith("▶ ")
        await pilot.press("y")
        await screen.until(lambda: app.clipboard == "2026-11-21T12:34:56.789+00:00 line 99", "one line")
        assert screen.view.following
        await pilot.press("y", "up", "space", *["up"] * 29)
        assert screen.rows()[0].startswith("▶ ")
        await pilot.press("y")
        await screen.until(lambda: app.clipboard.count("\n") == 29, "thirty lines")
        assert app.clipboard.endswith("line 98")
        assert app.clipboard.splitlines()[0].endswith("line 69")
        await pilot.press("y", "escape")
        assert not screen.view.status.is_marking


async def test_servers_are_merged_by_time_each_with_its_name(tmp_path: Path) -> None:
    logs = {name: tmp_path / f"{name}-20261121-123000.log" for name in ("one", "two")}
    for log in logs.values():
        write_minutes(log, 10)
    app = GpuboxApp(StillKeeper(tmp_path, *(a_server(name, log) for name, log in logs.items())))
    async with app.run_test(size=(100, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: screen.rows()[-1].endswith("goes on 9"), "one log")
        await pilot.press("m", "down", "space", "enter")
        await screen.until(lambda: "one + two" in screen.said("#head"), "both")
        await screen.until(lambda: screen.rows()[-1].startswith("two 12:09:04"), "the second's last line")
        assert screen.rows()[-2].startswith("one 12:09:04")
        await pilot.press("right_square_bracket")
        await screen.until(lambda: screen.rows()[-1].startswith("12:09:04"), "the selected one alone")


async def test_an_earlier_start_is_chosen_from_a_list_or_by_another_screen(tmp_path: Path) -> None:
    logs = [tmp_path / f"demo-20261121-12300{number}.log" for number in range(3)]
    for number, log in enumerate(logs):
        write(log, number * 10, number * 10 + 10)
    other = tmp_path / "run.log"
    write(other, 500, 510)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", logs[2]), a_server("last", None)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 29")
        await screen.until(lambda: "start 3 of 3" in screen.said("#head"), "three starts")
        await pilot.press("s", "down", "down", "enter")
        await screen.until_last("line 9")
        assert "start 1 of 3" in screen.said("#head")
        assert isinstance(app.screen, LogsScreen)
        app.screen.open_start(other)
        await screen.until_last("line 509")
        await pilot.press("right_square_bracket", "left_square_bracket")
        await screen.until_last("line 29")


async def test_a_search_ends_its_process_with_escape_and_with_the_app(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 1000)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 999")
        await pilot.press("slash", *"line 12", "enter")
        await screen.until(lambda: "of 11" in screen.said("#foot"), "eleven matches")
        first = screen.view.search_pids
        await pilot.press("escape")
        await screen.until(lambda: not alive(first), "the end of the first")
        await pilot.press("slash", *"line 13", "enter")
        await screen.until(lambda: "of 11" in screen.said("#foot") and bool(screen.view.search_pids), "another")
        view = screen.view
        second = view.search_pids
        assert second
    deadline = time.monotonic() + 20
    while alive(second):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_an_endless_expression_leaves_every_key_working(tmp_path: Path) -> None:
    log = tmp_path / "demo-20261121-123000.log"
    write(log, 0, 30)
    with log.open("a") as file:
        file.write(f"{STAMP}{'7' * 28}x\n")
    write(log, 30, 40)
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", log)))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until_last("line 39")
        await pilot.press("slash", *"(7+)+$", "enter")
        await screen.until(lambda: "of 4" in screen.said("#foot"), "the lines that end in a 7")
        await screen.until(lambda: "1 line took too long" in screen.said("#foot"), "that one was left out")
        for key, number in (("n", 1), ("n", 2), ("N", 1), ("n", 2)):
            await pilot.press(key)
            await screen.until(lambda at=number: f"{at} of 4" in screen.said("#foot"), key)  # type: ignore[misc]
        await screen.until(lambda: any(row.endswith(" line 17") for row in screen.rows()), "line 17")
        at = next(y for y, row in enumerate(screen.rows()) if row.endswith(" line 17"))
        assert [one.text for one in screen.view.render_line(at) if one.style and one.style.bgcolor]
        await pilot.press("escape")
        await screen.until(lambda: "of 4" not in screen.said("#foot"), "the end of the search")


async def test_the_way_to_an_error_begins_anew_in_another_log(tmp_path: Path) -> None:
    logs = [tmp_path / f"demo-20261121-12300{number}.log" for number in range(2)]
    for number, log in enumerate(logs):
        log.write_text(f"{STAMP}ERROR: one of {number}\n{STAMP}ERROR: two of {number}\n")
    app = GpuboxApp(StillKeeper(tmp_path, a_server("demo", logs[1])))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await opened(pilot)
        await screen.until(lambda: "start 2 of 2" in screen.said("#head"), "two starts")
        await pilot.press("E")
        await screen.until(lambda: screen.view._error is not None and screen.view._error[2] == 0, "the first error")
        await pilot.press("comma")
        await screen.until(lambda: "two of 0" in "".join(screen.rows()), "the older start")
        await pilot.press("E")
        await screen.until(lambda: not screen.view.following, "an error")
        assert screen.view._error == (0, 0, 0), "its first one"
