"""Who gives way in a switch, and where a server that is to be started goes."""

from __future__ import annotations

import pytest

from backends.errors import GpuBusyError
from backends.keeper.planning import CPU, Ceding, Place, Tenant, best_group, cede, place_of
from backends.snapshots import Gpu, GpuProcess, Grant, Missing, Owner

GIB = 1 << 30


def place(index: int = 0, *grants: tuple[str, float | None], **what: object) -> Place:
    granted = tuple(Grant(server, "me", None if size is None else int(size * GIB)) for server, size in grants)
    return Place(f"GPU-{index}", f"GPU {index}", 140 * GIB, granted, **what)  # type: ignore[arg-type]


def tenant(
    server: str,
    size: float | None,
    used: float,
    *gpus: int,
    sleeps: bool = False,
    stops_only: bool = False,
    fixed: str = "",
) -> Tenant:
    ids = [f"GPU-{index}" for index in gpus or (0,)]
    keeps = None if sleeps or stops_only else dict.fromkeys(ids, 2 * GIB)
    has = {one: None if size is None else int(size * GIB) for one in ids}
    return Tenant(server, has, used, keeps, sleeps, fixed)


def need(size: float | None, *gpus: int) -> dict[str, int | None]:
    return {f"GPU-{index}": None if size is None else int(size * GIB) for index in gpus or (0,)}


def test_nobody_gives_way_where_there_is_room() -> None:
    places = [place(0, ("a", 60), ("target", 2))]
    assert cede("target", need(80), places, [tenant("a", 60, 1.0)]) == ()


def test_who_is_awake_sleeps_and_sleepers_stay() -> None:
    places = [place(0, ("a", 119), ("b", 2), ("target", 2))]
    tenants = [tenant("a", 119, 9.0), tenant("b", 2, 1.0, sleeps=True)]
    assert cede("target", need(119), places, tenants) == (Ceding("a", asleep=True),)


def test_the_least_recently_used_gives_way_and_nobody_in_vain() -> None:
    places = [place(0, ("a", 40), ("b", 40), ("c", 40))]
    tenants = [tenant("a", 40, 3.0), tenant("b", 40, 1.0), tenant("c", 40, 2.0)]
    assert cede("target", need(50), places, tenants) == (Ceding("b", asleep=True),)
    small = [place(0, ("a", 10), ("b", 120))]
    assert cede("target", need(120), small, [tenant("a", 10, 1.0), tenant("b", 120, 2.0)]) == (
        Ceding("b", asleep=True),
    )


def test_what_sleepers_keep_is_asked_for_last() -> None:
    places = [place(0, ("a", 130), ("b", 4), ("c", 4))]
    tenants = [tenant("a", 130, 9.0), tenant("b", 4, 2.0, sleeps=True), tenant("c", 4, 1.0, sleeps=True)]
    assert cede("target", need(131), places, tenants) == (Ceding("c", asleep=False), Ceding("a", asleep=True))


def test_who_cannot_sleep_stops_in_its_turn() -> None:
    places = [place(0, ("a", 60), ("b", None))]
    tenants = [tenant("a", 60, 9.0), tenant("b", None, 1.0, stops_only=True)]
    assert cede("target", need(70), places, tenants) == (Ceding("b", asleep=False),)


def test_where_the_whole_gpu_is_needed_all_stop() -> None:
    places = [place(0, ("a", 60), ("b", 2))]
    tenants = [tenant("a", 60, 9.0), tenant("b", 2, 1.0, sleeps=True)]
    assert cede("target", need(None), places, tenants) == (
        Ceding("b", asleep=False),
        Ceding("a", asleep=False, why="the whole GPU is needed"),
    )


def test_a_server_on_two_gpus_gives_way_for_either() -> None:
    places = [place(0, ("a", 100)), place(1, ("a", 100), ("b", 20))]
    tenants = [tenant("a", 100, 1.0, 0, 1), tenant("b", 20, 0.5, 1)]
    assert cede("target", need(100, 0, 1), places, tenants) == (Ceding("a", asleep=True),)


def test_the_cpu_is_one_place() -> None:
    cpu = Place(CPU, "the CPU", None, (Grant("a", "me"),))
    assert cede("target", {CPU: None}, [cpu], [Tenant("a", {CPU: None}, 1.0)]) == (Ceding("a", asleep=False),)
    assert cede("a", {CPU: None}, [cpu], [Tenant("a", {CPU: None}, 1.0)]) == ()


def test_others_are_named_and_left_alone() -> None:
    foreign = place(0, ("a", 60), outside_bytes=50 * GIB, outsiders="python of eve")
    with pytest.raises(GpuBusyError, match=r"GPU 0 is in use by python of eve; target needs 119\.0 GiB of 140\.0"):
        cede("target", need(119), [foreign], [tenant("a", 60, 1.0)])
    assert cede("target", need(85), [foreign], [tenant("a", 60, 1.0)]) == (Ceding("a", asleep=True),)
    other = Place("GPU-0", "GPU 0", 140 * GIB, (Grant("theirs", "eve", None, ours=False),))
    with pytest.raises(GpuBusyError, match="theirs of eve"):
        cede("target", need(10), [other], [])
    with pytest.raises(GpuBusyError, match="too small"):
        cede("target", need(200), [place()], [])


def test_who_is_busy_with_another_switch_stays() -> None:
    with pytest.raises(GpuBusyError, match=r"server a \(it is being started\)"):
        cede("target", need(119), [place(0, ("a", 60))], [tenant("a", 60, 1.0, fixed="it is being started")])


def test_a_start_goes_where_holders_were_used_the_longest_ago() -> None:
    places = [place(0, ("a", 119)), place(1, ("b", 119)), place(2, ("c", 119))]
    tenants = [tenant("a", 119, 3.0, 0), tenant("b", 119, 1.0, 1), tenant("c", 119, 2.0, 2)]
    every = need(119, 0, 1, 2)
    assert best_group("target", 1, every, places, tenants) == (("GPU-1",), (Ceding("b", asleep=True),))
    group, ceding = best_group("target", 2, every, places, tenants)
    assert group == ("GPU-1", "GPU-2")
    assert ceding == (Ceding("b", asleep=True), Ceding("c", asleep=True))


def test_no_group_names_each_reason() -> None:
    places = [place(0, outside_bytes=100 * GIB, outsiders="python of eve"), place(1, ("a", 60))]
    with pytest.raises(GpuBusyError, match="no GPU can be had for target: GPU 0 is in use by python of eve"):
        best_group("target", 2, need(119, 0, 1), places, [tenant("a", 60, 1.0, 1)])
    with pytest.raises(GpuBusyError, match="the profile needs 3, this box has 2"):
        best_group("target", 3, need(119, 0, 1), places, [])


def gpu(*processes: GpuProcess, used: int = 0, grants: tuple[Grant, ...] = ()) -> Gpu:
    none = Missing("not read")
    free = 140 * GIB - used
    return Gpu(0, "GPU-0", "H200", 141 * GIB, used, free, 0.0, 30, none, none, processes, grants=grants)


def test_a_place_tells_apart_what_is_ours() -> None:
    ours = GpuProcess(1, "VLLM::EngineCore", "me", 60 * GIB, server="a", owner=Owner.SERVER)
    theirs = GpuProcess(2, "/usr/bin/python train.py", "eve", 50 * GIB)
    found = place_of(gpu(ours, theirs, used=110 * GIB, grants=(Grant("a", "me", 60 * GIB),)))
    assert (found.capacity_bytes, found.outside_bytes) == (140 * GIB, 50 * GIB)
    assert "python" in found.outsiders
    assert "eve" in found.outsiders
    granted = (Grant("b", "eve", 60 * GIB, ours=False),)
    assert place_of(gpu(theirs, used=50 * GIB, grants=granted)).outside_bytes == 0
    assert place_of(gpu(used=50 * GIB)).outside_bytes == 50 * GIB
    assert place_of(gpu(used=50 * GIB, grants=(Grant("a", "me", 60 * GIB),))).outside_bytes == 0
