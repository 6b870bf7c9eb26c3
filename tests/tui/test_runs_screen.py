"""The runs screen: the launches on record, told and filtered; an empty one says what to do next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from backends import paths
from backends.client import AsyncKeeper
from backends.errors import KeeperError
from backends.readonly import ReadOnlyKeeper
from backends.records import Launch, Records
from backends.simulation import SimulatedKeeper
from backends.snapshots import Server, ServerState, ServerUpdate
from backends.starts import StageTime, StartFigures
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.screens.base import GpuboxScreen

STAGES = (StageTime("config", 4.0), StageTime("weights", 16.0))
FIGURES = StartFigures(weights_bytes=12 << 30, kv_tokens=791_808)


def launch(number: int, server: str = "m7b", **changes: object) -> Launch:
    made = Launch(
        id=f"{server}/{number}",
        server=server,
        profile=server,
        fingerprint="f",
        engine="vllm",
        engine_version="0.26.0",
        gpu_kind="NVIDIA H200",
        gpu_count=2,
        launched_at=NOW - 1000 * number,
        ready_at=NOW - 1000 * number + 61,
        ended_at=NOW - 1000 * number + 600,
        outcome="stopped",
        stages=STAGES,
        figures=FIGURES,
        compile_cached=True,
        log_path=f"/no/such/{server}-{number}.log",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


FAILED = launch(
    2,
    "q14",
    outcome="failed",
    ready_at=None,
    figures=None,
    cause="out of GPU memory: 1 GiB more",
    card="cuda-oom-at-load",
)


async def opened(pilot: Pilot[None], wanted: str) -> None:
    await pilot.press("6")
    await until(pilot, lambda: wanted in shown(pilot), wanted)


def row(pilot: Pilot[None], name: str) -> list[str]:
    return next(line.split() for line in shown(pilot).splitlines()[2:] if f"  {name}  " in line)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
async def test_launches_are_told_newest_first_with_how_they_ended(size: tuple[int, int]) -> None:
    link = FakeLink()
    live = launch(1, "m7b", outcome="ready", ended_at=None)
    link.on_record = (live, FAILED, launch(3, "old", gpu_count=0, gpu_kind="CPU"))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await opened(pilot, "3 launches")
        assert row(pilot, "m7b")[3:9] == ["●", "ready", "61", "s", "16", "min"]
        assert row(pilot, "q14")[3:7] == ["✗", "failed", "–", "10:00"]
        assert row(pilot, "old")[3:8] == ["○", "stopped", "61", "s", "10:00"]
        assert "2 × H200" in shown(pilot)
        assert "Load tests and fine-tunings come with a later version" in shown(pilot)
        assert all(len(line) <= size[0] for line in shown(pilot).splitlines())
        await until(pilot, lambda: "ready after 61 s · compile cache used" in shown(pilot), "the stages")
        assert "weights 12.0 GiB · 791,808 tokens" in shown(pilot)
        await pilot.press("down")
        await until(pilot, lambda: "cuda-oom-at-load" in shown(pilot), "the failure")
        assert "out of GPU memory: 1 GiB more" in shown(pilot)


async def test_short_names_leave_the_headings_whole() -> None:
    link = FakeLink()
    link.on_record = (launch(1, "a"),)
    async with GpuboxApp(link, clock=lambda: NOW).run_test(size=(200, 50)) as pilot:
        await opened(pilot, "1 launch")
        heading = next(line for line in shown(pilot).splitlines() if "Launched" in line)
        assert {"Server", "Profile"} <= set(heading.split())


async def test_filters_go_through_servers_and_outcomes_and_escape_shows_all() -> None:
    link = FakeLink()
    link.on_record = (launch(1), FAILED, launch(3), launch(4, "q14"))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "4 launches")
        for key, title in (
            ("s", "2 launches · m7b"),
            ("s", "2 launches · q14"),
            ("o", "1 launch · q14 · failed"),
            ("o", "1 launch · q14 · stopped"),
            ("o", "2 launches · q14"),
            ("s", "4 launches"),
            ("o", "1 launch · failed"),
            ("s", "0 launches · m7b · failed"),
        ):
            await pilot.press(key)
            await until(pilot, lambda wanted=title: f"─{wanted}─" in shown(pilot), title)  # type: ignore[misc]
        assert "No launch matches. Esc shows all again." in shown(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: "─4 launches─" in shown(pilot), "all of them")


async def test_nothing_on_record_says_which_key_comes_next_and_offers_no_filter() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "Press 2, choose a profile, and start it with Enter.")
        footer = shown(pilot).splitlines()[-1]
        assert "Server" not in footer
        assert "Outcome" not in footer
        assert isinstance(app.screen, GpuboxScreen)
        assert app.screen.explained() == ()


async def test_records_that_cannot_be_read_say_so() -> None:
    class Broken(FakeLink):
        async def launches(self, limit: int = 200) -> tuple[Launch, ...]:
            raise KeeperError("records.sqlite cannot be read: disk I/O error")

    app = GpuboxApp(Broken(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "records.sqlite cannot be read: disk I/O error")
        assert "No launch is on record" not in shown(pilot)


def server_of(app: GpuboxApp, name: str) -> Server:
    found = app.named(name)
    assert found is not None
    return found


async def test_the_records_are_read_again_when_a_server_changes_and_never_while_hidden() -> None:
    link = FakeLink()
    link.on_record = (launch(1),)
    app = GpuboxApp(link, clock=lambda: NOW)

    def reads() -> int:
        return sum(one[0] == "launches" for one in link.asked)

    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "1 launch")
        assert reads() == 1
        first = link.state.servers[0]
        link.say(ServerUpdate(replace(first, metrics=link.state.servers[1].metrics)))
        await until(pilot, lambda: server_of(app, first.name).metrics == link.state.servers[1].metrics, "other figures")
        await pilot.pause()
        assert reads() == 1
        link.on_record = (launch(1), launch(2))
        link.say(ServerUpdate(replace(first, state=ServerState.STOPPED)))
        await until(pilot, lambda: "2 launches" in shown(pilot), "another launch")
        await pilot.press("1")
        await until(pilot, lambda: "Memory, GiB" in shown(pilot), "the box")
        before = reads()
        link.say(ServerUpdate(replace(first, state=ServerState.FAILED)))
        await until(pilot, lambda: server_of(app, first.name).state is ServerState.FAILED, "its failure")
        await pilot.pause()
        assert reads() == before


async def test_enter_opens_a_log_that_is_still_there_and_nothing_else(tmp_path: Path) -> None:
    link = FakeLink()
    kept = tmp_path / "old.log"
    kept.write_text("2026-11-21T12:34:56.789+00:00 what the old one said\n")
    name = link.state.servers[1].name
    link.on_record = (launch(1, name), launch(2, name, log_path=str(kept)))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "2 launches")
        assert "(is gone)" in shown(pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert app.current_mode == "runs"
        await pilot.press("down")
        await until(pilot, lambda: "Log" in shown(pilot).splitlines()[-1], "the key")
        await pilot.press("enter")
        await until(pilot, lambda: "what the old one said" in shown(pilot), "its log")
        assert app.current_mode == "logs"
        assert app.selected == name


async def test_the_figures_of_a_launch_are_explained() -> None:
    link = FakeLink()
    link.on_record = (launch(1), FAILED)
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, "2 launches")
        assert isinstance(app.screen, GpuboxScreen)
        keys = app.screen.explained()
        assert "weights" in keys
        assert not set(keys) - EXPLANATIONS.keys()


async def test_the_simulated_box_has_a_past_and_what_is_restarted_joins_it() -> None:
    now = NOW
    keeper = SimulatedKeeper(clock=lambda: now)
    before = await keeper.launches()
    assert [one.launched_at for one in before] == sorted((one.launched_at for one in before), reverse=True)
    assert {"ready", "starting", "failed", "stopped"} == {one.outcome for one in before}
    assert len({one.id for one in before}) == len(before)
    now += 60
    await keeper.restart("qwen2.5-14b")
    after = await keeper.launches()
    assert len(after) == len(before) + 1
    assert (after[0].server, after[0].outcome) == ("qwen2.5-14b", "starting")
    assert len(await keeper.launches(limit=2)) == 2


async def test_a_client_reads_the_records_with_or_without_a_keeper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    for link in (AsyncKeeper(), ReadOnlyKeeper(AsyncKeeper())):
        assert await link.launches() == () or isinstance(link, ReadOnlyKeeper)
        Records(paths.records_path()).add(launch(1))
        assert await link.launches() == (launch(1),)
    paths.records_path().write_bytes(b"this is no database, and never was one" * 100)
    with pytest.raises(KeeperError, match="cannot be read"):
        await AsyncKeeper().launches()
