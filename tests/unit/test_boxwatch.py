"""The keeper's eye on the box: what a reading says, and what is said between two of them."""

from __future__ import annotations

from backends.keeper.boxwatch import BoxWatch
from backends.keeper.events import Hub
from backends.metrics.series import SeriesStore
from backends.simulation import SimulatedKeeper
from backends.snapshots import Grant


async def test_a_grant_that_ended_is_not_shown_until_the_next_reading() -> None:
    read = SimulatedKeeper().snapshot().box
    readings: list[object] = []
    held = {read.gpus[0].uuid: (Grant("first", "me", None, ours=True),)}

    def sample() -> object:
        readings.append(read)
        return read

    watch = BoxWatch(sample, Hub(), SeriesStore(), lambda: held, dict)  # type: ignore[arg-type]
    assert [grant.server for grant in (await watch.box()).gpus[0].grants] == ["first"]
    held.clear()
    assert (await watch.box()).gpus[0].grants == ()
    assert len(readings) == 1
