"""What a server that sleeps is granted, and since when it is idle: the ledger is real, figures and GPUs are made up."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends import paths
from backends.engines.registry import engine_named
from backends.errors import GpuBusyError
from backends.front.link import FrontMode, FrontState
from backends.gpus.nvml import Nvml
from backends.gpus.sampler import MemoryNow
from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.keeper.history import History
from backends.keeper.idle import Idleness
from backends.keeper.record import Record
from backends.keeper.rooms import GIB, claim
from backends.keeper.subject import Subject
from backends.keeper.surroundings import Surroundings
from backends.ledger import Ledger
from backends.metrics.series import SeriesStore
from backends.records import Records
from backends.simulation import SimulatedKeeper
from backends.snapshots import Grant, Metrics, Missing, ServerState
from backends.switches import Sleep
from profiles.schema import parse_profile
from tests.gpu.conftest import NvmlStub, StubGpu, nvml_library, nvml_stub, uuid_of  # noqa: F401
from tests.keeper.conftest import fake_profile

GPU = "GPU-aaaa"
ALL = MemoryNow(used_bytes=4 * GIB, free_bytes=136 * GIB)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path / "home"))
    return Ledger(tmp_path / "ledger")


def sleeping(ledger: Ledger, needs: int | None = 100 * GIB, left: int = 2 * GIB, **more: Any) -> Record:
    """Return the record of a server that sleeps, and is granted what it keeps."""
    record = Record("mine", {}, {}, (GPU,), (0,), 8000, False, "1", "log", 1.0, reserved={GPU: needs}, **more)
    with ledger.changing():
        ledger.grant("mine", {GPU: left})
    return record


def other(ledger: Ledger, needs: int | None) -> None:
    with ledger.changing():
        ledger.grant("other", {GPU: needs})


def own(ledger: Ledger) -> int | None:
    return next(one.memory_bytes for one in ledger.grants()[GPU] if one.server == "mine")


def test_one_that_wakes_is_granted_what_it_needs(ledger: Ledger) -> None:
    record = sleeping(ledger)
    other(ledger, 40 * GIB)
    claim(ledger, record, {GPU: ALL}, {})
    assert own(ledger) == 100 * GIB


def test_what_was_reserved_as_a_whole_is_what_it_was_seen_to_take(ledger: Ledger) -> None:
    record = sleeping(ledger, None, awake_bytes={GPU: 90 * GIB})
    other(ledger, 50 * GIB)
    claim(ledger, record, {GPU: ALL}, {})
    assert own(ledger) == 90 * GIB


@pytest.mark.parametrize("granted", [41 * GIB, None])
def test_nothing_is_granted_twice(ledger: Ledger, granted: int | None) -> None:
    record = sleeping(ledger)
    other(ledger, granted)
    with pytest.raises(GpuBusyError, match=r"GPU 0 has .* of 140\.0 GiB beside what other has, 100\.0 are needed"):
        claim(ledger, record, {GPU: ALL}, {})
    assert own(ledger) == 2 * GIB


def test_nothing_is_granted_that_is_promised_to_another(ledger: Ledger) -> None:
    record = sleeping(ledger)
    with pytest.raises(GpuBusyError, match="next"):
        claim(ledger, record, {GPU: ALL}, {GPU: Grant("next", "")})


def test_what_is_granted_must_be_free_unless_it_is_waited_for(ledger: Ledger) -> None:
    record = sleeping(ledger)
    taken = {GPU: MemoryNow(used_bytes=43 * GIB, free_bytes=97 * GIB)}
    with pytest.raises(GpuBusyError, match=r"GPU 0 has 97\.0 GiB free, 98\.0 are needed"):
        claim(ledger, record, taken, {})
    assert own(ledger) == 2 * GIB
    claim(ledger, record, taken, {}, must_be_free=False)
    assert own(ledger) == 100 * GIB


def test_what_it_gave_back_must_be_free_even_if_it_was_more_than_its_share(ledger: Ledger) -> None:
    record = sleeping(ledger, awake_bytes={GPU: 103 * GIB}, asleep_bytes={GPU: 2 * GIB})
    with pytest.raises(GpuBusyError, match=r"GPU 0 has 100\.0 GiB free, 101\.0 are needed"):
        claim(ledger, record, {GPU: MemoryNow(40 * GIB, 100 * GIB)}, {})


def test_a_grant_that_is_gone_is_told(ledger: Ledger) -> None:
    record = sleeping(ledger)
    ledger.release("mine")
    with pytest.raises(GpuBusyError, match="GPU 0 is not granted to it any more"):
        claim(ledger, record, {GPU: ALL}, {})


def test_the_memory_of_gpus_is_read_at_once_and_what_cannot_be_read_is_missing(
    nvml_stub: NvmlStub,  # noqa: F811
) -> None:
    nvml_stub.show([StubGpu({"memory_total": 140 * GIB, "memory_reserved": GIB, "memory_used": 9 * GIB})])
    nvml, uuids = Nvml(), (uuid_of(0), uuid_of(1))
    assert all(isinstance(one, Missing) for one in nvml.memory(uuids).values())  # nobody has opened NVML yet
    nvml.read()
    read = nvml.memory(uuids)
    assert read[uuid_of(0)] == MemoryNow(9 * GIB, 130 * GIB)
    assert isinstance(read[uuid_of(1)], Missing)
    nvml_stub.show([StubGpu({"lost": 15})])
    assert isinstance(nvml.memory(uuids)[uuid_of(0)], Missing)
    nvml.close()


def figures(running: int = 0, requests: int = 0, tokens: int = 0) -> Metrics:
    none = Missing("not told")
    return Metrics(
        *(time.time(), 0.0, running, 0, 0.0, 0.0, 0, tokens, none, none, requests, none, none, none, none, none)
    )


def front(in_flight: int = 0, last_request_at: float | None = None) -> FrontState:
    return FrontState(FrontMode.PASS, False, "", in_flight, 0, 0, last_request_at, 1)


@pytest.fixture
def subject(ledger: Ledger) -> Subject:
    content = fake_profile() | {"gpus": 1, "sleep": True, "ttl": 5.0}
    record = Record("fake", content, {}, (GPU,), (0,), 8000, False, "1", "log", 1.0, uds="/none", ready_at=1000.0)
    hub, series, history = Hub(), SeriesStore(), History(Records(paths.records_path()))
    box = BoxWatch(lambda: SimulatedKeeper().snapshot().box, hub, series, dict, dict)
    around = Surroundings(hub, series, box, ledger, history, set)
    history.close()
    return Subject(record, parse_profile(content, "test"), engine_named("vllm"), around, ServerState.READY)


def since(subject: Subject) -> float | None:
    assert subject.server.idle is not None
    assert subject.server.idle.ttl_s == 300.0
    return subject.server.idle.since


def test_another_keeper_goes_on_counting_from_the_last_request(subject: Subject) -> None:
    idleness = Idleness(subject)
    idleness.see(figures(requests=7), front(last_request_at=2000.0))
    assert since(subject) == 2000.0
    assert subject.last_used_at == 2000.0
    assert idleness.is_over


def test_it_is_idle_only_with_gauges_at_zero_and_counters_that_stay(subject: Subject) -> None:
    idleness = Idleness(subject)
    for worked in (
        (figures(running=1), front()),
        (figures(), front(in_flight=1)),
        (figures(requests=1), front()),  # one that came and went between two readings
        (figures(requests=1, tokens=5), front()),
        (Missing("does not answer"), front()),
    ):
        idleness.see(*worked)
        assert since(subject) is None
        assert not idleness.is_over
    before = time.time()
    idleness.see(figures(requests=1, tokens=5), front())
    began = since(subject)
    assert began is not None
    assert began >= before
    assert not idleness.is_over
    idleness.see(figures(requests=1, tokens=5), front())
    assert since(subject) == began


def test_what_sleeps_is_not_idle(subject: Subject) -> None:
    idleness = Idleness(subject)
    idleness.see(figures(), front())
    subject.server = replace(subject.server, sleep=Sleep(1, 1.0))
    idleness.begin_anew()
    assert subject.server.idle is None
