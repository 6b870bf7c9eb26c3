"""Which GPUs a start gets, and what is said where it gets none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.errors import GpuboxError, GpuBusyError, NoSuchGpuError, UsageError
from backends.gpus.selection import find, select
from backends.snapshots import Gpu, GpuProcess, Grant, Missing, Owner

GIB = 2**30
TOTAL = int(139.8 * GIB)


def gpu(index: int, used_gib: float = 0.0, **changes: object) -> Gpu:
    used = int(used_gib * GIB)
    idle = Gpu(
        index=index,
        uuid=f"GPU-{index:x}aaa{index:04x}-1111-2222-3333-444444444444",
        name="NVIDIA H200",
        memory_total_bytes=TOTAL,
        memory_used_bytes=used,
        memory_free_bytes=TOTAL - used,
        utilization=0.0,
        temperature_c=30,
        power_w=75.0,
        power_limit_w=700.0,
        processes=(),
    )
    return replace(idle, **changes)  # type: ignore[arg-type]


def process(pid: int = 123, gib: float = 78.8, **changes: object) -> GpuProcess:
    stranger = GpuProcess(pid, "/usr/bin/python train.py --lr 1", "alice", int(gib * GIB))
    return replace(stranger, **changes)  # type: ignore[arg-type]


def shared(index: int, gib: float = 78.8) -> Gpu:
    return gpu(index, gib, processes=(process(gib=gib),))


def indices(gpus: tuple[Gpu, ...]) -> list[int]:
    return [gpu.index for gpu in gpus]


def test_named_gpus_come_in_the_order_they_were_named() -> None:
    box = [gpu(0), gpu(1), gpu(2)]
    chosen = select(box, ["2", "0"], 2)
    assert (indices(chosen.gpus), chosen.warnings) == ([2, 0], ())


@pytest.mark.parametrize("name", ["1", " 1 ", "GPU-1aaa", "gpu-1AAA", "1aaa", gpu(1).uuid])
def test_a_gpu_is_found_by_index_and_by_uuid_prefix(name: str) -> None:
    assert find([gpu(0), gpu(1)], name).index == 1


def test_a_vanished_gpu_does_not_hide_the_one_that_has_its_index_now() -> None:
    vanished = gpu(0, refusal="the driver does not list it any more")
    here = gpu(0, uuid="GPU-here")
    assert find([here, vanished], "0") is here


@pytest.mark.parametrize(
    ("box", "wanted", "count", "error", "message"),
    [
        ([gpu(0), gpu(1)], "2", 1, NoSuchGpuError, "there is no GPU 2: this box has GPUs 0–1"),
        ([gpu(0)], "1", 1, NoSuchGpuError, "there is no GPU 1: this box has GPU 0 alone"),
        ([gpu(0), gpu(3)], "1", 1, NoSuchGpuError, "there is no GPU 1: this box has GPUs 0, 3"),
        ([gpu(0)], "GPU-beef", 1, NoSuchGpuError, "no UUID begins with GPU-beef: this box has GPU 0 alone"),
        (
            [gpu(0), gpu(0x10)],
            "GPU-",
            1,
            UsageError,
            "'GPU-' names no GPU",
        ),
        (
            [gpu(1), gpu(0x1A, uuid="GPU-1aaa9999")],
            "1aaa",
            1,
            UsageError,
            f"1aaa is the beginning of 2 UUIDs: GPU 1 ({gpu(1).uuid}), GPU 26 (GPU-1aaa9999)",
        ),
        ([gpu(0)], "MIG-1234", 1, NoSuchGpuError, "MIG-1234 is a MIG device: gpubox assigns whole GPUs"),
        ([gpu(0)], "first", 1, UsageError, "'first' names no GPU"),
        ([gpu(0)], "-1", 1, UsageError, "'-1' names no GPU"),
        ([gpu(0)], "", 1, UsageError, "'' names no GPU"),
        ([gpu(0), gpu(1)], "0,GPU-0aaa", 2, UsageError, "GPU 0 is named twice in 0,GPU-0aaa"),
        ([gpu(0), gpu(1)], "auto,1", 2, UsageError, "auto,1 mixes auto or cpu with GPUs"),
        ([gpu(0), gpu(1)], "cpu", 1, UsageError, "cpu mixes auto or cpu with GPUs"),
        (
            [gpu(0), gpu(1)],
            "0",
            2,
            UsageError,
            "the profile needs 2 GPUs (tensor_parallel_size 2), 1 was named",
        ),
        (
            [gpu(0), gpu(1)],
            "0,1",
            1,
            UsageError,
            "the profile needs 1 GPU (tensor_parallel_size 1), 2 were named",
        ),
        (
            [gpu(0, mig=True, refusal="MIG is enabled: no")],
            "0",
            1,
            NoSuchGpuError,
            "GPU 0 cannot be assigned: MIG is enabled: no",
        ),
        ([gpu(0, grants=(Grant("qwen", "me"),))], "0", 1, GpuBusyError, "GPU 0 is held by server qwen"),
    ],
)
def test_a_name_that_cannot_be_had_is_refused_in_one_line(
    box: list[Gpu], wanted: str, count: int, error: type[GpuboxError], message: str
) -> None:
    with pytest.raises(GpuboxError) as raised:
        select(box, wanted.split(","), count, count_why=f"tensor_parallel_size {count}")
    assert (type(raised.value), raised.value.message) == (error, message)


def test_no_room_beside_a_stranger() -> None:
    with pytest.raises(GpuBusyError) as raised:
        select([shared(0)], ["0"], 1, needed_fraction=0.9, memory_why="gpu_memory_utilization 0.9")
    assert raised.value.message == (
        "GPU 0 has 61.0 of 139.8 GiB free, the profile wants 125.8 (gpu_memory_utilization 0.9);"
        " held by pid 123 python (alice)"
    )


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        ((process(gib=1), process(7, gib=77)), "; held by pid 123 python (alice) and 1 more"),
        (
            (process(command="hidden (another container)", user="?"),),
            "; held by pid 123 hidden (another container) (?)",
        ),
        ((process(server="old", owner=Owner.SERVER),), "; held by pid 123 python (server old)"),
        ((), "; held by a process that cannot be seen from here"),
        (Missing("not supported by this GPU"), ""),
    ],
)
def test_who_holds_the_room(processes: tuple[GpuProcess, ...] | Missing, says: str) -> None:
    with pytest.raises(GpuBusyError) as raised:
        select([gpu(0, 78.8, processes=processes)], ["0"], 1, 100 * GIB)
    assert raised.value.message == f"GPU 0 has 61.0 of 139.8 GiB free, the profile wants 100.0{says}"


def test_room_beside_a_stranger_is_taken_with_a_warning() -> None:
    chosen = select([shared(0)], ["0"], 1, needed_fraction=0.4)
    assert chosen.warnings == ("GPU 0 is also in use by pid 123 python (alice)",)


def test_memory_in_use_by_nobody_seen_is_a_warning() -> None:
    chosen = select([gpu(0, 40)], ["0"], 1, needed_fraction=0.4)
    assert chosen.warnings == ("GPU 0 has 40.0 GiB in use by a process that cannot be seen from here",)


def test_a_gpu_whose_room_is_not_known_is_taken_with_a_warning() -> None:
    unknown = Missing("the driver does not tell")
    box = [gpu(0, memory_total_bytes=unknown, memory_used_bytes=unknown, memory_free_bytes=unknown)]
    for wanted in ("0", "auto"):
        chosen = select(box, [wanted], 1, needed_fraction=0.9)
        assert chosen.warnings == ("the room on GPU 0 is not known: the driver does not tell",)


def test_gpus_of_different_kinds_together_are_a_warning() -> None:
    chosen = select([gpu(0), gpu(1, name="NVIDIA L40S")], ["0", "1"], 2)
    assert chosen.warnings == (
        "these GPUs are of different kinds (NVIDIA H200, NVIDIA L40S): the smallest sets the limit",
    )


def test_auto_takes_the_most_free_memory_and_says_so() -> None:
    desktop = process(kind="graphics", gib=30)
    chosen = select(
        [gpu(0, 30, processes=(desktop,)), gpu(1), gpu(2, 20, processes=(replace(desktop, pid=9),))], ["auto"], 1
    )
    assert indices(chosen.gpus) == [1]
    assert chosen.why == "GPU 1 139.8 GiB free: the most free memory (the others: GPU 2 119.8, GPU 0 109.8)"


def test_auto_takes_the_first_of_equals_although_some_mib_differ() -> None:
    chosen = select([gpu(0, 0.3), gpu(1, 0.1), gpu(2, 0)], ["auto"], 2)
    assert indices(chosen.gpus) == [0, 1]


def test_auto_keeps_to_gpus_of_one_kind_if_it_can() -> None:
    box = [gpu(0), gpu(1, name="B"), gpu(2, name="B")]
    chosen = select(box, ["auto"], 2)
    assert (indices(chosen.gpus), chosen.warnings) == ([1, 2], ())
    assert len(select(box, ["auto"], 3).warnings) == 1


@pytest.mark.parametrize(
    ("taken", "why"),
    [
        (gpu(0, grants=(Grant("qwen", "me"),)), "is held by server qwen"),
        (shared(0, 1.0), "is in use by pid 123 python (alice)"),
        (gpu(0, 40), "has 40.0 GiB in use by a process that cannot be seen from here"),
        (
            gpu(0, 40, processes=Missing("not supported")),
            "has 99.8 of 139.8 GiB free, the profile wants 125.8 (gpu_memory_utilization 0.9)",
        ),
        (gpu(0, refusal="MIG is enabled: no"), "cannot be assigned (MIG is enabled: no)"),
    ],
)
def test_auto_never_shares(taken: Gpu, why: str) -> None:
    asks = {"needed_fraction": 0.9, "memory_why": "gpu_memory_utilization 0.9"}
    chosen = select([taken, gpu(1)], ["auto"], 1, **asks)  # type: ignore[arg-type]
    assert indices(chosen.gpus) == [1]
    assert chosen.why == "GPU 1 139.8 GiB free: all others are taken"
    with pytest.raises(GpuboxError) as raised:
        select([taken, gpu(1)], ["auto"], 2, count_why="tensor_parallel_size 2", **asks)  # type: ignore[arg-type]
    assert isinstance(raised.value, NoSuchGpuError if taken.refusal else GpuBusyError)
    assert raised.value.message == f"the profile needs 2 GPUs (tensor_parallel_size 2), 1 of 2 can be had: GPU 0 {why}"


def test_auto_on_a_box_with_too_few_gpus() -> None:
    with pytest.raises(NoSuchGpuError, match="the profile needs 4 GPUs, this box has 2"):
        select([gpu(0), gpu(1)], ["auto"], 4)


def test_a_box_without_gpus_says_why() -> None:
    with pytest.raises(NoSuchGpuError) as raised:
        select([], ["0"], 1, no_gpus="no NVIDIA driver")
    assert raised.value.message == "this box has no GPU to assign: no NVIDIA driver"
    assert "cpu" in raised.value.hint


def test_the_askers_environment_bounds_what_may_be_assigned() -> None:
    box = [gpu(0), gpu(1), gpu(2)]
    assert indices(select(box, ["auto"], 1, visible="2,1").gpus) == [1]
    with pytest.raises(NoSuchGpuError, match="GPU 0 cannot be assigned: outside CUDA_VISIBLE_DEVICES=2,1"):
        select(box, ["0"], 1, visible="2,1")
    with pytest.raises(NoSuchGpuError, match="none of 3 can be had: GPU 0 cannot be assigned"):
        select(box, ["auto"], 1, visible="")


def near(number: int, *linked: int, node: tuple[int, ...] = ()) -> Gpu:
    return gpu(
        number,
        nvlink=tuple(gpu(other).uuid for other in linked if other != number),
        same_node=tuple(gpu(other).uuid for other in node if other != number),
    )


def test_auto_prefers_gpus_that_are_linked() -> None:
    pairs = [near(0, 2), near(1, 3), near(2, 0), near(3, 1)]
    chosen = select(pairs, ["auto"], 2)
    assert indices(chosen.gpus) == [0, 2]
    assert "NVLink between them" in chosen.why
    busy = [replace(pairs[0], grants=(Grant("a", "me"),)), *pairs[1:]]
    assert indices(select(busy, ["auto"], 2).gpus) == [1, 3]


def test_auto_prefers_one_numa_node_where_nothing_is_linked() -> None:
    nodes = [near(index, node=(0, 3) if index in (0, 3) else (1, 2)) for index in range(4)]
    chosen = select(nodes, ["auto"], 2)
    assert indices(chosen.gpus) == [0, 3]
    assert "on one NUMA node" in chosen.why


def test_links_count_more_than_some_free_memory_and_the_reason_does_not_lie() -> None:
    box = [replace(near(0, 1), memory_free_bytes=TOTAL - 20 * GIB), near(1, 0), near(2), near(3)]
    chosen = select(box, ["auto"], 2)
    assert indices(chosen.gpus) == [0, 1]
    assert "enough free memory, NVLink" in chosen.why


def sharer(server: str, gib: float | None, user: str = "me", ours: bool = True) -> Grant:
    return Grant(server, user, None if gib is None else int(gib * GIB), ours)


@pytest.mark.parametrize(
    ("grants", "fraction", "obstacle"),
    [
        ((sharer("a", 50),), 0.4, ""),
        ((sharer("a", None),), 0.4, "is held by server a; a does not share it"),
        ((sharer("a", 50), sharer("b", 40)), 0.4, "of 139.8 GiB are not granted yet, the profile wants 55.9"),
        ((sharer("a", 50, "bob", ours=False),), 0.9, "is held by server a of bob: 89.8 of 139.8 GiB are not granted"),
    ],
)
def test_a_gpu_is_shared_by_those_who_share_as_far_as_the_sums_go(
    grants: tuple[Grant, ...], fraction: float, obstacle: str
) -> None:
    box = [gpu(0, grants=grants)]
    for wanted in ("0", "auto"):
        if not obstacle:
            assert indices(select(box, [wanted], 1, needed_fraction=fraction, share=True).gpus) == [0]
            continue
        with pytest.raises(GpuBusyError) as raised:
            select(box, [wanted], 1, needed_fraction=fraction, share=True)
        assert obstacle in raised.value.message


def test_what_was_granted_and_not_taken_yet_is_not_free() -> None:
    used = gpu(0, 60, processes=(process(gib=60, user="alice"),), grants=(sharer("a", 60),))
    with pytest.raises(
        GpuBusyError, match=r"79\.8 of 139\.8 GiB free with 60\.0 promised to a, the profile wants 55\.9"
    ):
        select([used], ["0"], 1, needed_fraction=0.4, share=True)
    own = replace(used, processes=(process(gib=60, server="a", owner=Owner.SERVER),))
    assert select([own], ["0"], 1, needed_fraction=0.4, share=True).warnings == ()


def test_auto_takes_an_empty_gpu_before_it_shares_one() -> None:
    box = [gpu(0, grants=(sharer("a", 10),)), gpu(1, 20, processes=())]
    box[1] = replace(box[1], memory_used_bytes=4, memory_free_bytes=TOTAL - 20 * GIB)
    assert indices(select(box, ["auto"], 1, needed_fraction=0.2, share=True).gpus) == [1]


def test_processes_of_another_users_granted_server_are_no_strangers() -> None:
    theirs = gpu(0, 50, processes=(process(gib=50, user="bob"),), grants=(sharer("a", 50, "bob", ours=False),))
    assert select([theirs], ["auto"], 1, needed_fraction=0.4, share=True).warnings == ()
