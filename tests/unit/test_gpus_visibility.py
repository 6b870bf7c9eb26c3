"""What CUDA makes of CUDA_VISIBLE_DEVICES: each row was seen with two H200, driver 580 (tests/gpu asks again)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.gpus.visibility import bound_by_environment, visible_uuids
from backends.snapshots import Gpu, Missing

NONE = Missing("not read")
A = "GPU-11209d99-13e4-bf92-8a9b-4110b43f8d75"
B = "GPU-b59a16c5-4c5b-ef92-29ba-7da9f14d392f"


def box(*uuids: str) -> list[Gpu]:
    return [
        Gpu(index, uuid, "NVIDIA H200", NONE, NONE, NONE, NONE, NONE, NONE, NONE, NONE)
        for index, uuid in enumerate(uuids)
    ]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("", ""),
        ("0", "A"),
        ("1", "B"),
        ("0,1", "AB"),
        ("1,0", "BA"),
        ("0,9,1", "A"),
        ("9", ""),
        ("-1", ""),
        ("0,-1,1", "A"),
        ("NoDevFiles", ""),
        ("all", ""),
        ("0,0", ""),
        ("1,0,1", ""),
        ("0 , 1", "AB"),
        (" 1", "B"),
        ("0,,1", "A"),
        (",1", ""),
        ("0,1,", "AB"),
        ("1gpu,0", "BA"),
        ("+1", "B"),
        ("01", "B"),
        ("0x1", "A"),
        ("1.5", "B"),
        ("1 0", "B"),
        ("99999999999999999999", ""),
        (A, "A"),
        (f"{B},{A}", "BA"),
        (A.upper(), "A"),
        (f"gpu-{A[4:]}", ""),
        ("GPU-" + A[4:].replace("-", ""), "A"),
        (f"{A}x", "A"),
        (f"{A}-0", "A"),
        (f"{A} ,{B}", "AB"),
        (f"{A}, {B}", "A"),
        (f" {A}", ""),
        (f"{A},{A}", ""),
        (f"{A},1", "A"),
        (f"1,{A}", "B"),
        (A[4:], ""),
        (A[:12], "A"),
        (f"{A[:12]},{B[:12]}", "AB"),
        (f"{A[:12]},{A}", ""),
        (f"{A[:12]}-", "A"),
        (f"{A[:12]}x", ""),
        (f"{A[:12]} ,{B[:12]}", ""),
        (f"{A[:12]}x,{B}", ""),
        ("GPU-", ""),
        (f"{A},GPU-ffffffff,{B}", "A"),
        (f"GPU-ffffffff,{A}", ""),
        (f"MIG-{A}", ""),
        ("MIG-GPU-x/0/0", ""),
        (f"{A},MIG-x", "A"),
    ],
)
def test_what_cuda_shows(value: str, seen: str) -> None:
    assert visible_uuids(box(A, B), value) == tuple({"A": A, "B": B}[name] for name in seen)


def test_a_prefix_that_fits_two_ends_the_list() -> None:
    assert visible_uuids(box(A, "GPU-1120ffff-13e4-bf92-8a9b-4110b43f8d75"), "GPU-1120") == ()


def test_not_set_bounds_nothing() -> None:
    assert bound_by_environment(box(A, B), None) == tuple(box(A, B))


def test_gpus_outside_are_refused_and_keep_what_was_said_of_them_before() -> None:
    first, second, third = box(A, B, "GPU-cccccccc")
    sliced = replace(third, mig=True, refusal="MIG is enabled")
    bounded = bound_by_environment([first, second, sliced], "1")
    assert [gpu.refusal for gpu in bounded] == ["outside CUDA_VISIBLE_DEVICES=1", None, "MIG is enabled"]
    assert [gpu.refusal for gpu in bound_by_environment([first], "")] == ["CUDA_VISIBLE_DEVICES is set and empty"]
