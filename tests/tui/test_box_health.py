"""What the box screen says of a GPU's faults, of how even a server's GPUs work, and what `i` explains of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from backends.gpu_readings import Xid
from backends.snapshots import Box, BoxUpdate, EccErrors, Gpu, Missing, Series, Server, ServerState, Snapshot
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.format import GIB
from tui.screens.base import GpuboxScreen
from tui.themes import Palette
from tui.widgets.gpu_balance import EVEN, WINDOW_S, Balance, GpuWindow, Spread, balance_text
from tui.widgets.gpu_health import SHOWN_S, all_well, faults, health_lines, health_signs, health_words

PLAIN = Palette(*["#000000"] * 10)
WELL: dict[str, object] = {"ecc": EccErrors(0, 0), "throttling": (), "xids": ()}


def changed(box: Box, change: Callable[[Gpu], Gpu]) -> Box:
    return replace(box, gpus=tuple(change(gpu) for gpu in box.gpus))


def well(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, box=changed(snapshot.box, lambda gpu: replace(gpu, **WELL)))  # type: ignore[arg-type]


def row(pilot: Pilot[None], index: int) -> str:
    lines = shown(pilot).splitlines()
    start = next((number for number, line in enumerate(lines) if "Memory, GiB" in line), None)
    return "" if start is None else lines[start + 1 + index]


async def test_a_narrow_table_has_signs_and_only_where_something_is_wrong() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "▼" in row(pilot, 1), "the hot GPU")
        assert "✗" in row(pilot, 5)
        assert "✗" not in row(pilot, 0) + row(pilot, 1)
        link.say(BoxUpdate(well(link.state).box))
        await until(pilot, lambda: bool(row(pilot, 1)) and "▼" not in row(pilot, 1), "a box that is well")
        assert " ! " not in shown(pilot)


async def test_a_wide_table_says_it_in_words_and_the_details_in_sentences() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(160, 40)) as pilot:
        await until(pilot, lambda: "▼ thermal" in row(pilot, 1), "the hot GPU")
        assert "✗ XID 94  ✗ ECC 1" in row(pilot, 5)
        await until(pilot, lambda: "✓ no ECC error · clocks free · no XID" in shown(pilot), "what is well")
        await pilot.press("down")
        await until(pilot, lambda: "▼ clocks held down: thermal" in shown(pilot), "why")
        assert "✓ no ECC error · no XID" in shown(pilot)
        await pilot.press(*["down"] * 4)
        await until(pilot, lambda: "✗ XID 94, 8 min ago: contained memory error" in shown(pilot), "the XID")
        assert "✗ ECC: 1 error not corrected, 3 corrected since the driver was loaded" in shown(pilot)


async def test_what_a_gpu_does_not_tell_is_a_dash_with_its_reason() -> None:
    snapshot = simulated()
    mute = Missing("not supported by this GPU")
    box = changed(snapshot.box, lambda gpu: replace(gpu, ecc=mute, throttling=mute, xids=mute))
    app = GpuboxApp(FakeLink(replace(snapshot, box=box)), clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "ECC errors – not supported by this GPU" in shown(pilot), "the reason")
        assert "throttling – not supported" in shown(pilot)
        assert "XIDs – not supported" in shown(pilot)
        assert "✓" not in shown(pilot)
        assert "ECC 0" not in shown(pilot)


async def test_the_balance_of_a_server_on_several_gpus_stands_in_the_details() -> None:
    snapshot = simulated()
    box = changed(snapshot.box, lambda gpu: replace(gpu, utilization=1.0, power_w=300.0 if gpu.index == 1 else 600.0))
    app = GpuboxApp(FakeLink(replace(snapshot, box=box)), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "GPU 1 behind: power 300 vs 600 W, memory " in shown(pilot), "the balance")
        assert "balance 50%" in shown(pilot)
        await pilot.press("down", "down")
        await until(pilot, lambda: "GPU 2 ·" in shown(pilot), "a GPU of another server")
        assert "balance" not in shown(pilot)


@pytest.mark.parametrize("spec", ["0", "1xRTX4090", "8xH200", "16xH200"])
async def test_everything_that_is_explained_has_an_explanation(spec: str) -> None:
    app = GpuboxApp(FakeLink(simulated(spec)), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "192 cores" in shown(pilot), "the box")
        for _ in app.servers:
            await pilot.press("down")
        screen = app.screen
        assert isinstance(screen, GpuboxScreen)
        keys = screen.explained()
        assert keys
        assert len(set(keys)) == len(keys)
        assert not set(keys) - EXPLANATIONS.keys()
        await pilot.press("i")
        await until(pilot, lambda: EXPLANATIONS[keys[0]].title in shown(pilot), "the sheet")


async def test_what_is_wrong_is_explained_first() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "GPU 0 ·" in shown(pilot), "the box")
        await pilot.press("down")
        await until(pilot, lambda: "GPU 1 ·" in shown(pilot), "the hot GPU")
        screen = app.screen
        assert isinstance(screen, GpuboxScreen)
        assert screen.explained()[:2] == ("throttle", "tp_balance")


async def test_a_history_has_one_line_where_there_is_no_room_for_more() -> None:
    class WithHistory(FakeLink):
        async def gpu_series(self, uuid: str) -> Series:
            return Series((NOW - 1, NOW), {"utilization": (0.5, 1.0), "memory_used_bytes": (1.0, float(70 * GIB))})

    app = GpuboxApp(WithHistory(simulated("10xH200")), clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "▄█   memory" in shown(pilot), "the line")
        assert all(len(line) <= 80 for line in shown(pilot).splitlines())


async def test_drawing_the_same_state_again_redraws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from textual.widgets import Static

    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "GPU 0 ·" in shown(pilot), "the box")
        await pilot.pause(0.1)
        drawn: list[str | None] = []
        update = Static.update

        def counted(static: Static, *args: object, **options: object) -> None:
            drawn.append(static.id)
            update(static, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Static, "update", counted)
        before = app.snapshot
        link.say(BoxUpdate(replace(link.state.box, at=NOW + 1)))
        await until(pilot, lambda: app.snapshot is not before, "the newer reading")
        await pilot.pause(0.1)
        assert "gpu-facts" not in drawn
        assert "host" not in drawn


def gpu_with(**changes: object) -> Gpu:
    return replace(simulated().box.gpus[4], **{**WELL, **changes})  # type: ignore[arg-type]


def test_what_is_worse_comes_first_and_each_sign_once() -> None:
    gpu = gpu_with(xids=(Xid(NOW - 90, 13, 7),), ecc=EccErrors(2, 3), throttling=("power cap",))
    assert [fault.is_bad for fault in faults(gpu, NOW)] == [True, False, False]
    assert health_words(gpu, NOW, PLAIN).plain == "✗ ECC 3  ✗ XID 13  ▼ power cap"
    assert health_signs(gpu, NOW, PLAIN).plain == "✗▼"
    mute = gpu_with(ecc=Missing("no"), throttling=Missing("no"), xids=Missing("no"))
    assert [health_words(one, NOW, PLAIN).plain for one in (gpu_with(), mute)] == ["✓", "–"]
    assert "XID 13, 2 min ago, 7 times: graphics engine exception" in "\n".join(
        line.plain for line in health_lines(gpu, NOW, PLAIN)
    )


def test_an_old_xid_leaves_the_table_and_stays_in_the_details() -> None:
    gpu = gpu_with(xids=(Xid(NOW - SHOWN_S - 1, 48),))
    assert health_signs(gpu, NOW, PLAIN).plain == ""
    assert health_lines(gpu, NOW, PLAIN)[0].plain.startswith("✗ XID 48, 60 min ago")


def test_nothing_looked_at_is_not_called_well() -> None:
    mute = Missing("no")
    assert all_well(gpu_with(ecc=mute, throttling=mute, xids=mute), PLAIN) is None
    told = all_well(gpu_with(throttling=mute), PLAIN)
    assert told is not None
    assert told.plain == "✓ no ECC error · no XID"


def pair() -> tuple[Box, Server]:
    snapshot = simulated()
    return snapshot.box, next(server for server in snapshot.servers if len(server.gpus) == 2)


def at(box: Box, second: float, *watts: float, busy: float = 1.0) -> Box:
    gpus = [
        replace(gpu, power_w=watts[gpu.index] if gpu.index < len(watts) else 80.0, utilization=busy) for gpu in box.gpus
    ]
    return replace(box, at=NOW + second, gpus=tuple(gpus))


def test_balance_is_of_mean_power_over_the_window_and_of_memory_as_it_is_now() -> None:
    box, server = pair()
    window = GpuWindow()
    empty = changed(box, lambda gpu: replace(gpu, shares=(), memory_used_bytes=0))
    for second, power in enumerate((200.0, 400.0, 600.0)):
        window.take(at(empty if second < 2 else box, second, power, 800.0))
        window.take(at(empty, second, 0.0, 0.0))  # the same moment again
    balance = window.balance(server)
    assert balance is not None
    assert (balance.behind, balance.power) == (0, Spread(400.0, 800.0))
    own = sum(float(str(one.memory_bytes)) for one in box.gpus[0].shares if one.who == server.name)
    assert balance.memory == Spread(own, own)
    window.take(at(box, WINDOW_S + 3, 220.0, 221.0))
    balance = window.balance(server)
    assert balance is not None
    assert balance_text(balance, PLAIN).plain.startswith("balance 100% · even: power 220 vs 221 W, memory ")


def test_a_rank_that_waits_counts_as_busy_so_utilization_says_nothing_of_balance() -> None:
    box, server = pair()
    window = GpuWindow()
    waits = at(box, 0.0, 221.0, 220.0)
    window.take(replace(waits, gpus=(replace(waits.gpus[0], utilization=0.24), *waits.gpus[1:])))
    balance = window.balance(server)
    assert balance is not None
    assert balance.ratio > EVEN


@pytest.mark.parametrize("state", [ServerState.QUEUED, ServerState.STARTING, ServerState.SLEEPING])
def test_there_is_no_balance_of_a_server_that_does_not_serve(state: ServerState) -> None:
    box, server = pair()
    window = GpuWindow()
    window.take(at(box, 0.0, 200.0, 800.0))
    assert window.balance(server) is not None
    assert window.balance(replace(server, state=state)) is None


def test_idle_gpus_are_compared_by_memory_alone() -> None:
    box, server = pair()
    less = replace(box.gpus[1], shares=(), memory_used_bytes=30 * GIB)
    more = replace(box.gpus[0], shares=(), memory_used_bytes=60 * GIB)
    window = GpuWindow()
    window.take(at(replace(box, gpus=(more, less, *box.gpus[2:])), 0.0, 80.0, 120.0, busy=0.04))
    balance = window.balance(server)
    assert balance == Balance(1, None, Spread(30 * GIB, 60 * GIB))
    assert balance_text(balance, PLAIN).plain == "balance 50% · GPU 1 behind: memory 30.0 vs 60.0 GiB"


def test_there_is_no_balance_of_one_gpu_or_of_nothing_read() -> None:
    box, server = pair()
    window = GpuWindow()
    assert window.balance(server) is None
    gone = Missing("lost")
    window.take(
        changed(box, lambda gpu: replace(gpu, utilization=gone, power_w=gone, memory_used_bytes=gone, shares=()))
    )
    assert window.balance(server) is None
    window.take(at(box, 1.0, 500.0, 500.0))
    assert window.balance(replace(server, gpus=server.gpus[:1], gpu_indices=(0,))) is None
