"""`gpubox up`: a set of servers, on a box where some run already, and after a reboot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import psutil
import pytest

from backends import paths
from backends.client import ensure_keeper
from backends.sets import settings_path
from backends.snapshots import ServerState
from tests.keeper.conftest import PATIENCE_S, Box, fake_profile, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    settings_path().unlink(missing_ok=True)
    lasting_box.sweep()


def settings(text: str) -> None:
    paths.private(settings_path().parent)
    settings_path().write_text(text)


def told(stderr: str) -> dict[str, str]:
    """Return what was said of each server, without the seconds."""
    lines = [line for line in stderr.splitlines() if not line.startswith("  → ")]
    return {name: what for name, _, what in (line.removeprefix("gpubox: ").partition(": ") for line in lines)}


def test_up_starts_what_does_not_run_and_says_a_line_for_each(box: Box) -> None:
    for name in ("one", "two", "three"):
        box.keep_profile(fake_profile(name))
    settings('[sets]\ndefault = ["one", { profile = "two", name = "second", port = "auto" }, "three"]\n')
    before = box.start(fake_profile("one"))
    box.until(ServerState.READY, "one")
    said = told(box.gpubox("up").stderr)
    assert said["one"] == f"ready already, {before.address}/v1"
    assert said["second"].startswith("ready after ")
    assert said["three"].endswith(f"s, {box.server('three').address}/v1")
    assert {server.name for server in box.client.snapshot().servers if server.state is ServerState.READY} == set(said)
    assert box.server("one").launched_at == before.launched_at
    assert box.server("second").profile == "two"


def test_up_goes_on_after_a_failure_and_ends_with_the_worst_code(box: Box) -> None:
    box.keep_profile(fake_profile("bad", fail="the model is haunted"))
    box.keep_profile(fake_profile("good"))
    settings('[sets]\nall = ["missing", "bad", "good"]\n')
    said = told(box.gpubox("up", "all", code=6).stderr)
    assert said["missing"] == "no such profile"
    assert said["bad"] == "failed: ValueError: the model is haunted (exit code 1)"
    assert said["good"].startswith("ready after ")


def test_when_the_wait_is_over_the_set_keeps_starting(box: Box) -> None:
    box.keep_profile(fake_profile("slow", start=600))
    settings('[sets]\ndefault = ["slow"]\n')
    for _ in range(2):
        said = told(box.gpubox("up", "--wait", "0", code=7).stderr)
        assert said == {"slow": "is not ready after 0 s; it keeps starting"}
    assert box.server("slow").state is ServerState.STARTING


def test_up_without_a_set_says_how_to_make_one(box: Box) -> None:
    said = box.gpubox("up", code=2).stderr
    assert said == f"gpubox: {settings_path()} has no set default\n  → gpubox autostart add PROFILE makes it\n"
    box.keep_profile(fake_profile("one"))
    said = box.gpubox("autostart", "add", "one").stderr
    assert said.startswith("after a reboot: one\n")
    assert box.gpubox("autostart", "show").stdout == "default: one\n"
    assert json.loads(box.gpubox("autostart", "show", "--json").stdout)["sets"]["default"][0]["profile"] == "one"
    assert "did you mean one?" in box.gpubox("autostart", "add", "onee", code=3).stderr


def test_after_a_reboot_the_set_comes_up_again(box: Box) -> None:
    """All processes of before are gone, their pids are others', and the boot is another."""
    box.keep_profile(fake_profile("one"))
    box.keep_profile(fake_profile("two"))
    settings('[sets]\ndefault = ["one", "two"]\n')
    box.gpubox("up")
    before = {name: box.server(name) for name in ("one", "two")}
    bystander = box.spawn_other("sleep", "600")
    reboot(box, bystander.pid)
    after = ensure_keeper(box.client).snapshot().servers
    assert {server.name for server in after} == {"one", "two"}
    for name in before:
        lost = box.until(ServerState.LOST, name)
        assert "rebooted" in (lost.cause or "")
    said = told(box.gpubox("up").stderr)
    assert all(what.startswith("ready after ") for what in said.values())
    for name, server in before.items():
        assert box.server(name).launched_at != server.launched_at
    assert bystander.poll() is None


def reboot(box: Box, other_pid: int) -> None:
    """Leave behind what a reboot does: state files that speak of another boot, and pids that others have now."""
    keeper = ensure_keeper(box.client).snapshot().keeper
    assert keeper is not None
    kill_and_wait(keeper.pid)
    for path in (paths.state_dir() / "servers").glob("*/*/process.json"):
        facts = json.loads(path.read_text())
        tree = [psutil.Process(facts[part]["pid"]) for part in ("shim", "guard", "engine")]
        for process in tree:  # both at once, so that neither tells of the other's end
            process.suspend()
        for process in tree:
            process.kill()
        assert psutil.wait_procs(tree, timeout=PATIENCE_S)[1] == []
        facts |= {"boot_id": "00000000-1111-2222-3333-444444444444", "phase": "running", "exit": None, "error": None}
        for part in ("shim", "guard", "engine"):
            facts[part]["pid"] = other_pid
        path.write_text(json.dumps(facts))
