"""A server's memory by use: what is known, what is missing and why, and that nothing is ever negative."""

from __future__ import annotations

from dataclasses import replace

from backends.memory import Division, Kind, divisions
from backends.simulation import SimulatedKeeper
from backends.snapshots import Missing, Owner, Server, ServerState, Share, Snapshot
from backends.starts import StartFigures

NOW = 1_795_264_500.0
GIB = 1 << 30
FIGURES = StartFigures(
    weights_bytes=12 * GIB, activation_bytes=2 * GIB, graphs_bytes=GIB, kv_available_bytes=40 * GIB, kv_tokens=1000
)


def divided(held_gib: float, **changes: object) -> Division:
    snapshot: Snapshot = SimulatedKeeper(clock=lambda: NOW).snapshot()
    server: Server = replace(snapshot.servers[1], **({"figures": FIGURES} | changes))  # type: ignore[arg-type]
    gpu = next(gpu for gpu in snapshot.box.gpus if gpu.uuid in server.gpus)
    shares = (
        Share(Owner.SERVER, server.name, int(held_gib * GIB)),
        Share(Owner.FOREIGN, "alice: python", 3 * GIB),
    )
    gpu = replace(gpu, shares=shares, memory_used_bytes=int((held_gib + 3) * GIB))
    (division,) = divisions(server, replace(snapshot.box, gpus=(gpu,)))
    return division


def sizes(division: Division) -> dict[Kind, float | None]:
    return {
        part.kind: None if isinstance(part.memory_bytes, Missing) else part.memory_bytes / GIB
        for part in division.parts
    }


def test_parts_sum_up_to_what_is_held() -> None:
    division = divided(57)
    assert sizes(division) == {
        Kind.WEIGHTS: 12,
        Kind.KV_CACHE: 40,
        Kind.GRAPHS: 1,
        Kind.ACTIVATION: 2,
        Kind.OTHER: 2,
    }
    assert (division.others_bytes, division.excess_bytes) == (3 * GIB, 0)


def test_activation_is_a_peak_and_other_is_never_negative() -> None:
    assert sizes(divided(54))[Kind.ACTIVATION] == 1
    early = divided(20)
    assert (sizes(early)[Kind.ACTIVATION], sizes(early)[Kind.OTHER]) == (0, 0)
    assert early.excess_bytes == 33 * GIB


def test_what_no_log_has_told_is_missing_and_counts_as_other() -> None:
    division = divided(57, figures=replace(FIGURES, kv_available_bytes=None), state=ServerState.STARTING)
    assert sizes(division)[Kind.KV_CACHE] is None
    assert sizes(division)[Kind.OTHER] == 42
    assert sizes(divided(57, figures=None))[Kind.OTHER] == 57
    negative = divided(57, figures=replace(FIGURES, graphs_bytes=-GIB))
    assert sizes(negative)[Kind.GRAPHS] == 0


def test_a_sleeping_server_holds_only_other_and_a_stopped_one_nothing() -> None:
    asleep = divided(1.8, state=ServerState.SLEEPING)
    assert {kind for kind, size in sizes(asleep).items() if size is not None} == {Kind.OTHER}
    snapshot = SimulatedKeeper(clock=lambda: NOW).snapshot()
    assert divisions(replace(snapshot.servers[0], state=ServerState.STOPPED), snapshot.box) == ()


def test_on_the_cpu_the_log_is_all_there_is() -> None:
    snapshot = SimulatedKeeper(clock=lambda: NOW).snapshot()
    server = replace(snapshot.servers[0], gpus=(), gpu_indices=(), figures=FIGURES)
    (division,) = divisions(server, snapshot.box)
    assert division.gpu is None
    assert sizes(division)[Kind.WEIGHTS] == 12
    assert sizes(division)[Kind.OTHER] is None
    assert len(divisions(snapshot.servers[0], snapshot.box)) == 2
