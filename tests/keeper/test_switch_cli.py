"""`gpubox switch` and `gpubox sleep` against a real keeper: engines and GPUs are stand-ins."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.snapshots import ServerState
from tests.gpu.conftest import StubGpu, nvml_library  # noqa: F401
from tests.keeper.switch_box import SwitchBox, switch_box_in

READY, SLEEPING, FAILED = ServerState.READY, ServerState.SLEEPING, ServerState.FAILED


@pytest.fixture(scope="module")
def kept_box(nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwitchBox]:  # noqa: F811
    with switch_box_in(tmp_path_factory.mktemp("home"), nvml_library) as box:
        yield box


@pytest.fixture
def box(kept_box: SwitchBox) -> Iterator[SwitchBox]:
    kept_box.stub.show([StubGpu()])
    yield kept_box
    kept_box.sweep()


def told_steps(text: str) -> list[tuple[str, str]]:
    """Return the steps that were told, with their servers."""
    found = re.findall(r"^  \d\d:\d\d:\d\d (.+?) +(?:\d+\.\d+ s|\d+:\d\d)  (\S+)", text, re.MULTILINE)
    return [(name, server) for name, server in found]


def test_it_tells_each_step_and_the_time_of_all(box: SwitchBox) -> None:
    for name in "ab":
        box.keep_profile(box.sleepy(name))
    box.environ |= {"GPUBOX_NVML_STUB": str(box.stub.scenario)}
    first = box.gpubox("switch", "a")
    assert re.fullmatch(r"a: switched in \d+\.\d\d s: started \d+\.\d\d, first token \d+\.\d\d\n", first.stdout)
    assert told_steps(first.stderr) == [("start", "a"), ("first token", "a")]
    assert box.states("a") == [READY]

    second = box.gpubox("switch", "b", "--level", "2", "--drain", "0")
    assert ("sleep", "a") in told_steps(second.stderr)
    assert told_steps(second.stderr)[-2:] == [("start", "b"), ("first token", "b")]
    asleep = box.server("a").sleep
    assert asleep is not None
    assert asleep.level == 2

    listed = box.gpubox("switch").stdout.splitlines()
    assert listed[0].split() == ["NAME", "STATE", "WAY", "SIZE", "EXPECTED", "WHO", "GIVES", "WAY"]
    row = next(line for line in listed if line.startswith("a "))
    assert "asleep · level 2" in row
    assert "wakes from level 2" in row
    assert row.endswith("b (GPU 0) sleeps, level 1")
    assert "serves" in next(line for line in listed if line.startswith("b "))
    assert any(line.startswith("demo ") and "profile" in line for line in listed)

    back = json.loads(box.gpubox("switch", "a", "--json").stdout)
    assert (back["outcome"], back["to"]) == ("done", "a")
    assert [step["name"] for step in back["steps"]][-1] == "first-token"
    assert back["took_s"] > 0
    assert back["base_url"] == f"{box.server('a').address}/v1"
    assert box.states("a", "b") == [READY, SLEEPING]
    assert box.gpubox("switch", "a").stdout == "a serves already\n"
    choices = json.loads(box.gpubox("switch", "--json").stdout)
    assert {"a", "b", "demo"} <= {choice["server"] for choice in choices}

    status = box.gpubox("status").stdout
    assert "slot: a awake · b asleep, level 1" in status
    assert "asleep · level 1 · <1 min" in status


def test_what_fails_to_wake_is_told_with_what_to_do(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a", wake_fails=True))
    assert box.switch(box.sleepy("b")).outcome == "done"
    failed = box.gpubox("switch", "a", code=6)
    assert failed.stdout == ""
    assert "gpubox: a: not switched, what served before serves again: " in failed.stderr
    assert "→ gpubox diagnose a tells why" in failed.stderr
    assert box.until(FAILED, "a").cause is not None
    assert box.until(READY, "b").state is READY


def test_sleep_waits_until_it_sleeps_and_says_what_it_holds(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    done = box.gpubox("sleep", "a", "--level", "2")
    assert re.search(r"^a sleeps at level 2 \(\d+\.\d s\)", done.stderr)
    assert box.states("a") == [SLEEPING]
    assert "a sleeps already: asleep · level 2" in box.gpubox("sleep", "a").stderr
    assert box.gpubox("switch", "a").stdout.startswith("a: switched in ")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("switch", "nobody"), 9, "gpubox switch lists what there is to switch to"),
        (("switch", "nobody", "--level", "3"), 2, "there is no level 3"),
        (("switch", "nobody", "--gpus", ","), 2, "--gpus names no GPU"),
        (("sleep", "nobody"), 9, "nobody"),
        (("--readonly", "switch", "nobody"), 2, "gpubox is read-only: it does not switch"),
        (("--readonly", "sleep", "nobody"), 2, "gpubox is read-only: it does not sleep"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    box: SwitchBox, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = box.gpubox(*arguments, code=code)
    assert said in done.stderr
    assert done.stdout == ""


def test_what_cannot_sleep_is_not_put_to_sleep(box: SwitchBox) -> None:
    profile = box.sleepy("a", more={"sleep": False})
    box.start_one(profile)
    assert "cannot sleep" in box.gpubox("sleep", "a", code=10).stderr
    assert box.states("a") == [READY]


def test_who_is_awake_already_goes_nowhere_else(box: SwitchBox) -> None:
    box.start_one(box.sleepy("a"))
    assert "a is on its GPUs already" in box.gpubox("switch", "a", "--gpus", "0", code=10).stderr


def test_a_warm_spare_is_begun_and_left_to_itself_or_awaited_until_it_sleeps(box: SwitchBox) -> None:
    box.environ |= {"GPUBOX_NVML_STUB": str(box.stub.scenario)}
    for name in "ab":
        box.keep_profile(box.sleepy(name))
    awaited = box.gpubox("--headless", "--profile", "a", "--asleep", "--wait", "40")
    assert awaited.stdout == "a sleeps; gpubox switch a wakes it\n"
    assert box.states("a") == [SLEEPING]
    box.gpubox("switch", "a")

    begun = box.gpubox("--headless", "--profile", "b", "--asleep")
    assert begun.stdout == "b will sleep once it has started\n"
    box.gpubox("sleep", "a")
    box.until(SLEEPING, "b")


def test_a_spare_must_be_able_to_sleep(box: SwitchBox) -> None:
    box.keep_profile(box.sleepy("a") | {"sleep": False})
    refused = box.gpubox("--headless", "--profile", "a", "--asleep", code=2)
    assert "sleep = true" in refused.stderr
    assert "--asleep goes with --headless" in box.gpubox("--profile", "a", "--asleep", code=2).stderr
