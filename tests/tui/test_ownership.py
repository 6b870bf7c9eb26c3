"""Whose memory is whose on screen, ending what nobody looks after, and a screen that changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from backends import readonly
from backends.errors import ConflictError, KeeperError, UsageError
from backends.gpus.ownership import shares_of
from backends.orphans import Orphan, Reaped
from backends.readonly import ReadOnlyKeeper, unkept_updates
from backends.snapshots import (
    Foreign,
    Gpu,
    GpuProcess,
    Grant,
    Missing,
    Owner,
    Server,
    ServerState,
    Share,
    Snapshot,
    SnapshotUpdate,
)
from profiles.store import Store
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.format import GIB
from tui.headless.status import lines
from tui.owners import share_text

LEFT = Orphan(4711, 99, "old", "VLLM::EngineCore", "me", (), 0, 3 * GIB, NOW - 60)


def crowded(snapshot: Snapshot) -> Snapshot:
    """Return a box whose first GPU is used by everybody at once."""
    processes = (
        GpuProcess(101, "VLLM::EngineCore", "me", 60 * GIB, server="m7b", owner=Owner.SERVER, start_ticks=1),
        GpuProcess(102, "python train.py", "alice", 38 * GIB, start_ticks=2),
        GpuProcess(103, "VLLM::Worker", "bob", 20 * GIB, start_ticks=3, note="its parent is gone: probably an orphan"),
        GpuProcess(104, "VLLM::EngineCore", "me", 10 * GIB, server="old", owner=Owner.ORPHAN, start_ticks=4),
    )
    grants = (Grant("m7b", "me", 64 * GIB), Grant("theirs", "alice", 40 * GIB, ours=False))
    gpu = replace(snapshot.box.gpus[0], processes=processes, memory_used_bytes=129 * GIB, grants=grants)
    gpu = replace(gpu, shares=shares_of(gpu))
    return replace(snapshot, box=replace(snapshot.box, gpus=(gpu, *snapshot.box.gpus[1:])))


def lines_with(pilot: Pilot[None], text: str) -> list[str]:
    return [line for line in shown(pilot).splitlines() if text in line]


def toasts(app: GpuboxApp) -> str:
    return "\n".join(f"{toast.title} {toast.message}" for toast in app._notifications)


def by_hand(snapshot: Snapshot) -> Server:
    some = snapshot.servers[0]
    return replace(
        some,
        name="vllm-8000",
        profile="",
        state=ServerState.READY,
        log_path=None,
        foreign=Foreign(31337, 2, "alice", "vllm serve m"),
    )


async def test_every_share_is_drawn_and_told_without_colour() -> None:
    app = GpuboxApp(FakeLink(crowded(simulated("2xH200"))), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "GPU 0 ·" in shown(pilot), "the details")
        (row,) = lines_with(pilot, "129.0/139.8")
        assert "████×▒▒▒▒" in row
        text = " ".join(line.strip() for line in shown(pilot).splitlines())
        for share in (
            "█ server m7b 60.0 GiB",
            "▒ foreign alice python train.py pid 102 38.0 GiB",
            "▒ foreign bob VLLM::Worker pid 103 20.0 GiB",
            "× orphan of old pid 104 10.0 GiB",
            "░ unattributed 1.0 GiB (the driver's own)",
        ):
            assert share in text
        assert "held by m7b 64.0 GiB, theirs of alice 40.0 GiB" in text
        assert lines_with(pilot, "× left by old")
        assert lines_with(pilot, "its parent is gone: probably an orphan")
        assert all(len(line) <= 80 for line in shown(pilot).splitlines())


def test_pids_tell_foreign_shares_apart() -> None:
    assert share_text(Share(Owner.SERVER, "m7b", GIB, (1, 2))) == "server m7b 1.0 GiB"
    assert share_text(Share(Owner.FOREIGN, "alice x", GIB, (1, 2))) == "foreign alice x pid 1, 2 1.0 GiB"


def test_status_tells_shares_oddities_and_what_was_left_behind() -> None:
    snapshot = crowded(simulated("2xH200"))
    told = "\n".join(lines(replace(snapshot, servers=(by_hand(snapshot),)), NOW, (LEFT,)))
    for line in (
        "GPU 0  █ server m7b 60.0 GiB · ▒ foreign alice python train.py pid 102 38.0 GiB · ",
        "pid 103 VLLM::Worker of bob: its parent is gone: probably an orphan; gpubox reap 103 ends it",
        "× old left pid 4711 behind, with 3.0 GiB of the host's memory: gpubox reap ends it",
        "ready · by hand",
        "vllm-8000: started by hand by alice, pid 31337: vllm serve m",
    ):
        assert line in told
    assert "GPU 1  █ server llama-3.3-70b" in told


async def test_an_orphan_is_killed_after_a_question() -> None:
    link = FakeLink(crowded(simulated("2xH200")))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "x Reap" in shown(pilot), "the key")
        await pilot.press("x")
        await until(pilot, lambda: "Kill 1 orphan?" in shown(pilot), "the question")
        assert "pid 104  VLLM::EngineCore, left by old" in shown(pilot)
        await pilot.press("n")
        await until(pilot, lambda: "Kill 1 orphan?" not in shown(pilot), "no question")
        assert link.requests() == []
        await pilot.press("x", "y")
        await until(pilot, lambda: link.requests() == [("reap", 104, 4, False)], "the request")
        await until(pilot, lambda: "pid 104 is gone (SIGKILL)" in toasts(app), "the answer")
        await pilot.press("down")
        await until(pilot, lambda: "x Reap" not in shown(pilot), "no key where there is nothing to reap")


async def test_an_orphan_that_has_ended_meanwhile_does_not_save_the_others() -> None:
    snapshot = crowded(simulated("2xH200"))
    gpu = snapshot.box.gpus[0]
    assert not isinstance(gpu.processes, Missing)
    more = (*gpu.processes, replace(gpu.processes[-1], pid=105, start_ticks=5))
    gpus = (replace(gpu, processes=more), *snapshot.box.gpus[1:])
    link = FakeLink(replace(snapshot, box=replace(snapshot.box, gpus=gpus)))
    reap = link.reap

    async def ended_already(pid: int, start_ticks: int, *, foreign: bool = False) -> Reaped:
        done = await reap(pid, start_ticks, foreign=foreign)
        if pid == 104:
            raise ConflictError("pid 104 has ended already")
        return done

    link.reap = ended_already  # type: ignore[method-assign]
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "x Reap" in shown(pilot), "the key")
        await pilot.press("x")
        await until(pilot, lambda: "Kill 2 orphans?" in shown(pilot), "the question")
        await pilot.press("y")
        await until(pilot, lambda: "pid 105 is gone (SIGKILL)" in toasts(app), "the other")
        assert "pid 104 has ended already" in toasts(app)


async def test_a_foreign_process_wants_its_pid_typed() -> None:
    link = FakeLink(crowded(simulated("2xH200")))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "X End …" in shown(pilot), "the key")
        await pilot.press("X")
        await until(pilot, lambda: "type its pid" in shown(pilot), "the question")
        assert "pid 102  alice  38.0 GiB  python train.py" in shown(pilot)
        await pilot.press("y", "enter")
        await pilot.press(*"104", "enter")
        await until(pilot, lambda: "104 is none of these pids" in shown(pilot), "the refusal: that is no foreign one")
        assert link.requests() == []
        await pilot.press("backspace", "backspace", "backspace", *"102", "enter")
        await until(pilot, lambda: link.requests() == [("reap", 102, 2, True)], "the request")
        await pilot.press("X", "escape")
        await pilot.pause()
        assert len(link.requests()) == 1


async def test_an_orphan_on_the_cpu_has_a_line_of_its_own() -> None:
    link = FakeLink(simulated("0"))
    link.left = (LEFT,)
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "× old left pid 4711 behind, with 3.0 GiB" in shown(pilot), "the line")
        await until(pilot, lambda: "x Reap" in shown(pilot), "the key")
        await pilot.press("x", "y")
        await until(pilot, lambda: link.requests() == [("reap", 4711, 99, False)], "the request")


async def test_a_server_started_by_hand_is_marked_and_left_alone() -> None:
    snapshot = simulated()
    link = FakeLink(replace(snapshot, servers=(by_hand(snapshot),)))
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("2")
        await until(pilot, lambda: "by hand" in shown(pilot), "the mark")
        assert "c Chat" in shown(pilot)
        for key in ("x Stop", "r Restart", "d Forget"):
            assert key not in shown(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "gpubox does not touch it" in toasts(app), "the refusal")
        assert link.requests() == []
        await pilot.press("3")
        await until(pilot, lambda: "log unknown: it was not started by gpubox" in shown(pilot), "why there is no log")


async def test_a_read_only_screen_says_so_and_asks_for_nothing(store: Store) -> None:
    link = FakeLink(crowded(simulated("2xH200")))
    app = GpuboxApp(ReadOnlyKeeper(link), store=store, clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "GPU 0 ·" in shown(pilot), "the details")
        assert "READ-ONLY" in shown(pilot).splitlines()[0]
        assert "x Reap" not in shown(pilot)
        await pilot.press("x")
        await until(pilot, lambda: "gpubox is read-only: it does not reap" in toasts(app), "the refusal")
        await pilot.press("2")
        await until(pilot, lambda: "l Logs" in shown(pilot), "the servers")
        for key in ("x Stop", "r Restart"):
            assert key not in shown(pilot)
        await pilot.press("r")
        await until(pilot, lambda: "it does not restart" in toasts(app), "the refusal")
        await pilot.press("tab")
        await pilot.pause()
        assert "Start …" not in shown(pilot)
        await pilot.press("s")
        await until(pilot, lambda: "it does not start" in toasts(app), "the refusal")
        assert link.requests() == []


async def test_a_read_only_link_refuses_in_one_line_and_answers_questions() -> None:
    link = FakeLink()
    keeper = ReadOnlyKeeper(link)
    for request in (keeper.stop("a"), keeper.restart("a"), keeper.forget("a"), keeper.reap(1, 2)):
        with pytest.raises(UsageError, match="gpubox is read-only: it does not"):
            await request
    assert await keeper.orphans() == ()
    assert await keeper.history() == ()
    assert link.requests() == []


async def test_without_a_keeper_a_read_only_screen_reads_the_box_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    updates = unkept_updates()
    async with asyncio.timeout(20):
        first = await anext(updates)
        second = await anext(updates)
    assert isinstance(first, SnapshotUpdate)
    assert isinstance(second, SnapshotUpdate)
    assert first.snapshot.keeper is None
    assert second.snapshot.box.at > first.snapshot.box.at
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_may_not_touch_anything_sends_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.client import KeeperClient, ensure_keeper

    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    monkeypatch.setattr(readonly, "_forbidden", True)
    with pytest.raises(UsageError, match="read-only"):
        KeeperClient().stop("a")
    with pytest.raises(KeeperError, match="starts none"):
        ensure_keeper()
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_share_of_somebody_is_seen() -> None:
    from tui.themes import Palette
    from tui.widgets.share_bar import share_bar

    colours = Palette(*["#000000"] * 10)
    base: Gpu = simulated("1xH200").box.gpus[0]
    shares = (Share(Owner.SERVER, "a", 139 * GIB, (1,)), Share(Owner.FOREIGN, "b x", GIB // 2, (2,)))
    gpu = replace(base, memory_used_bytes=139 * GIB + GIB // 2, shares=shares)
    assert share_bar(gpu, 20, colours).plain == "█" * 19 + "▒"
