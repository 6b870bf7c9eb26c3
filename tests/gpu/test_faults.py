"""A GPU's faults through pynvml itself: ECC errors, throttling, and XIDs in a thread that ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from backends.gpu_readings import Xid
from backends.gpus.nvml import ECC_EVERY_S, RARE_EVERY_S, Nvml
from backends.gpus.nvml_figures import LOST
from backends.gpus.xids import AGAIN_S, KEPT, WatchEndedError, XidWatch, meaning
from backends.snapshots import EccErrors, Gpu, Missing
from tests.gpu.conftest import NvmlStub, StubGpu, uuid_of

NOT_SUPPORTED = Missing("not supported by this GPU")


@pytest.fixture
def nvml() -> Iterator[Nvml]:
    nvml = Nvml(watches_xids=True)
    yield nvml
    nvml.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "xids"]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def numbers(gpu: Gpu) -> list[tuple[int, int]]:
    assert not isinstance(gpu.xids, Missing)
    return [(xid.number, xid.count) for xid in gpu.xids]


def test_ecc_errors_are_counted_and_not_at_every_reading(nvml_stub: NvmlStub) -> None:
    now = 0.0
    nvml = Nvml(lambda: now)
    nvml_stub.show([StubGpu({"ecc_corrected": 7, "ecc_uncorrected": 2})])
    assert nvml.read().gpus[0].ecc == EccErrors(corrected=7, uncorrected=2)
    nvml_stub.show([StubGpu({"ecc_corrected": 8, "ecc_uncorrected": 2})])
    assert nvml.read().gpus[0].ecc == EccErrors(corrected=7, uncorrected=2)
    now += ECC_EVERY_S
    assert nvml.read().gpus[0].ecc == EccErrors(corrected=8, uncorrected=2)


@pytest.mark.parametrize(
    ("reasons", "words"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x4, ("power cap",)),
        (0x8, ("hardware slowdown",)),
        (0x48, ("thermal (hardware)",)),
        (0x88, ("power brake",)),
        (0x24, ("power cap", "thermal")),
        (0x112, ("sync boost", "clocks set by hand", "display")),
    ],
)
def test_what_holds_the_clocks_down_is_said_in_words(nvml_stub: NvmlStub, reasons: int, words: tuple[str]) -> None:
    nvml_stub.show([StubGpu({"throttle": reasons}), StubGpu({"throttle": "!13", "throttle_old": reasons})])
    assert [gpu.throttling for gpu in Nvml().read().gpus] == [words, words]


def test_what_holds_the_clocks_down_is_seen_within_seconds(nvml_stub: NvmlStub) -> None:
    now = 0.0
    nvml = Nvml(lambda: now)
    nvml_stub.show([StubGpu()])
    assert nvml.read().gpus[0].throttling == ()
    nvml_stub.show([StubGpu({"throttle": 0x80})])
    now += RARE_EVERY_S
    assert nvml.read().gpus[0].throttling == ("power brake",)


def test_what_a_gpu_does_not_tell_is_missing_and_leaves_the_rest(nvml_stub: NvmlStub, nvml: Nvml) -> None:
    nvml_stub.show(
        [
            StubGpu({"ecc_corrected": None, "ecc_uncorrected": None}),
            StubGpu({"ecc_corrected": "!3"}),
            StubGpu({"throttle": "!3", "throttle_old": "!3"}),
            StubGpu({"events": 0}),
            StubGpu({"events": "!3"}),
            StubGpu({"lost": 15}),
        ]
    )
    geforce, half, quiet, no_xids, vgpu, lost = nvml.read().gpus
    assert (geforce.ecc, half.ecc, quiet.throttling) == (NOT_SUPPORTED, NOT_SUPPORTED, NOT_SUPPORTED)
    assert (no_xids.xids, vgpu.xids) == (NOT_SUPPORTED, NOT_SUPPORTED)
    assert (geforce.throttling, geforce.xids, quiet.ecc) == ((), (), EccErrors(0, 0))
    assert (lost.ecc, lost.throttling) == (Missing(LOST), Missing(LOST))
    assert all(gpu.utilization == 0 and gpu.refusal is None for gpu in (geforce, half, quiet, no_xids, vgpu))


def test_an_xid_reaches_its_gpu_and_a_second_one_counts_up(nvml_stub: NvmlStub, nvml: Nvml) -> None:
    nvml_stub.show([StubGpu(), StubGpu()])
    assert [gpu.xids for gpu in nvml.read().gpus] == [(), ()]
    nvml_stub.show([StubGpu(), StubGpu({"xid": 94, "xid_count": 1})])
    until(lambda: numbers(nvml.read().gpus[1]) == [(94, 1)], "the XID")
    nvml_stub.show([StubGpu(), StubGpu({"xid": 94, "xid_count": 3})])
    until(lambda: numbers(nvml.read().gpus[1]) == [(94, 3)], "two more of them")
    nvml_stub.show([StubGpu(), StubGpu({"xid": 79, "xid_count": 4, "lost": 15})])
    until(lambda: numbers(nvml.read().gpus[1]) == [(94, 3), (79, 1)], "another, of a GPU that is gone")
    assert nvml.read().gpus[0].xids == ()


def test_xids_are_heard_again_after_the_driver_was_reloaded(nvml_stub: NvmlStub, nvml: Nvml) -> None:
    nvml_stub.show([StubGpu()])
    nvml.read()
    nvml_stub.show([StubGpu()], session=1)
    assert nvml.read().gpus[0].xids == ()
    nvml_stub.show([StubGpu({"xid": 31, "xid_count": 1})], session=1)
    until(lambda: numbers(nvml.read().gpus[0]) == [(31, 1)], "the XID")


def test_a_reader_that_does_not_watch_starts_no_thread(nvml_stub: NvmlStub) -> None:
    nvml_stub.show([StubGpu({"xid": 31, "xid_count": 1})])
    assert isinstance(Nvml().read().gpus[0].xids, Missing)
    assert "xids" not in [thread.name for thread in threading.enumerate()]


class Played:
    """Events that a test hands out; `told` counts those that were taken."""

    def __init__(self, *happened: tuple[float, int], end: str = "") -> None:
        self.now = 0.0
        self.is_over = threading.Event()
        self._happened = list(happened)
        self._end = end

    def register(self, uuid: str) -> bool | Missing:
        return True

    def wait(self) -> tuple[str, int] | None:
        if self._happened:
            self.now, number = self._happened.pop(0)
            return uuid_of(0), number
        self.is_over.set()
        if self._end:
            raise WatchEndedError(self._end)
        time.sleep(0.01)
        return None

    def close(self) -> None:
        self.is_over.set()


def gathered(*happened: tuple[float, int], end: str = "") -> tuple[Xid, ...] | Missing:
    events = Played(*happened, end=end)
    watch = XidWatch(events, lambda: events.now)
    watch.of(uuid_of(0))
    assert events.is_over.wait(30)
    watch.close()
    return watch.of(uuid_of(0))


def test_a_storm_is_one_xid_and_the_same_one_much_later_is_another() -> None:
    storm = tuple((float(second), 13) for second in range(100))
    assert gathered(*storm, (200.0 + AGAIN_S, 13)) == (Xid(0.0, 13, 100), Xid(200.0 + AGAIN_S, 13))


def test_only_the_newest_are_kept() -> None:
    seen = gathered(*((float(number), number) for number in range(1, KEPT + 4)))
    assert not isinstance(seen, Missing)
    assert [xid.number for xid in seen] == list(range(4, KEPT + 4))


def test_a_watch_that_ended_says_why_and_keeps_what_it_heard() -> None:
    assert gathered(end="the driver was restarted") == Missing("the driver was restarted")
    assert gathered((1.0, 48), end="the driver was restarted") == (Xid(1.0, 48),)


def test_the_common_numbers_have_a_meaning_and_no_number_is_without_words() -> None:
    assert "fell off the bus" in meaning(79)
    assert "contained memory error" in meaning(94)
    assert "dmesg" in meaning(9_999)
