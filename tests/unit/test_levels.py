"""How deep a server sleeps, by host memory."""

from __future__ import annotations

from backends.keeper.levels import HOST_MARGIN_BYTES, Dozer, HostRoom, Sleeper, choose
from backends.switches import Yield

GIB = 1 << 30
ROOM = HostRoom(available_bytes=100 * GIB, pinned_bytes=0, most_bytes=64 * GIB)


def dozer(weights: int | None = 12, **what: object) -> Dozer:
    return Dozer("qwen", None if weights is None else weights * GIB, **what)  # type: ignore[arg-type]


def test_level_1_where_twice_the_weights_have_room() -> None:
    choice = choose(dozer(), ROOM)
    assert (choice.how, choice.level, choice.why) == (Yield.SLEEP_1, 1, "")
    assert choice.room == HostRoom(76 * GIB, 24 * GIB, 64 * GIB)


def test_level_2_where_host_memory_is_short_says_of_what() -> None:
    available = 24 * GIB + HOST_MARGIN_BYTES - 1
    short = choose(dozer(), HostRoom(available, 0, 64 * GIB))
    assert short.how is Yield.SLEEP_2
    assert short.why == "level 1 needs 24.0 GiB of host memory, 26.0 are available"
    assert choose(dozer(), HostRoom(available + 1, 0, 64 * GIB)).how is Yield.SLEEP_1
    bounded = choose(dozer(), HostRoom(100 * GIB, 48 * GIB, 64 * GIB))
    assert bounded.how is Yield.SLEEP_2
    assert bounded.why == "level 1 needs 24.0 GiB of host memory: 48.0 of at most 64.0 are pinned"


def test_what_is_pinned_already_is_pinned_no_second_time() -> None:
    choice = choose(dozer(host_bytes=24 * GIB), HostRoom(3 * GIB, 64 * GIB, 64 * GIB))
    assert (choice.how, choice.stops) == (Yield.SLEEP_1, ())


def test_the_sleeper_used_the_longest_ago_stops_first_and_none_in_vain() -> None:
    room = HostRoom(100 * GIB, 60 * GIB, 64 * GIB)
    old, older, mine = Sleeper("old", 30 * GIB, 20.0), Sleeper("older", 30 * GIB, 10.0), Sleeper("qwen", 9 * GIB, 1.0)
    choice = choose(dozer(), room, [old, older, mine])
    assert (choice.how, choice.stops) == (Yield.SLEEP_1, ("older",))
    assert choice.room.pinned_bytes == 54 * GIB
    assert choose(dozer(20), room, [old, older]).stops == ("older", "old")
    too_much = choose(dozer(40), room, [old, older])
    assert (too_much.how, too_much.stops, too_much.room) == (Yield.SLEEP_2, (), room)


def test_level_2_can_be_asked_for() -> None:
    choice = choose(dozer(), ROOM, asked=2)
    assert (choice.how, choice.why) == (Yield.SLEEP_2, "level 2 was asked for")
    assert choose(dozer(), ROOM, asked=1).how is Yield.SLEEP_1


def test_lora_does_not_sleep_at_level_2() -> None:
    assert choose(dozer(lora=True), ROOM).how is Yield.SLEEP_1
    choice = choose(dozer(lora=True), HostRoom(GIB, 0, 64 * GIB))
    assert choice.how is Yield.STOP
    assert choice.level is None
    assert choice.why.endswith("are available, and with LoRA it does not wake from level 2")


def test_who_cannot_sleep_stops_and_unknown_weights_are_not_pinned() -> None:
    assert choose(dozer(cannot="its profile does not say sleep = true"), ROOM).how is Yield.STOP
    assert choose(dozer(None), ROOM).how is Yield.SLEEP_2
