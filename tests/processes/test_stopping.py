"""Stops and kills of each part of a launch: nothing may be left, and the facts must be true."""

from __future__ import annotations

import mmap
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends.processes import facts
from tests.processes.conftest import assert_gone, await_children, locked, outcome

if TYPE_CHECKING:
    from tests.processes.conftest import Launcher


# Stopping


def test_stop_terms_the_main_process_only(start: Launcher) -> None:
    launched = start("fork:tell-term,say:child ready", "wait", term_again_s=10)
    launched.await_line("child ready")
    launched.signal(signal.SIGTERM)
    end = launched.await_end()
    assert outcome(end.exit) == (None, signal.SIGTERM)
    assert end.stop_asked_at is not None
    assert not [line for line in launched.lines() if line.startswith("TERM to")]
    assert launched.lines()[-1] == "gpubox: engine was ended by SIGTERM (asked to stop)"


def test_a_swallowed_term_is_sent_again(start: Launcher) -> None:
    """vLLM: SIGTERM during the engine's initialisation is swallowed."""
    launched = start("swallow-term", "say:ready", "wait", term_again_s=0.2, kill_after_s=30)
    launched.await_line("ready")
    launched.signal(signal.SIGTERM)
    assert outcome(launched.await_end().exit) == (0, None)
    assert "swallowed a TERM" in launched.lines()


def test_what_ignores_term_is_killed_with_its_whole_tree(start: Launcher) -> None:
    """vLLM: SIGTERM can hang for ever; then only KILL works."""
    launched = start(
        "ignore-term", "orphan:ignore-term", "fork:setsid,ignore-term", "say:ready", "wait", kill_after_s=0.5
    )
    launched.await_line("ready")
    tree = await_children(launched, 2)
    asked = time.monotonic()
    launched.signal(signal.SIGTERM)
    assert launched.await_phase("stopping").stop_asked_at is not None
    end = launched.await_end()
    assert outcome(end.exit) == (None, signal.SIGKILL)
    assert time.monotonic() - asked >= 0.5
    assert_gone(tree, asked, 30)


def test_quit_kills_at_once(start: Launcher) -> None:
    launched = start("ignore-term", "orphan:ignore-term", "say:ready", "wait", kill_after_s=60)
    launched.await_line("ready")
    tree = await_children(launched, 1)
    asked = time.monotonic()
    launched.signal(signal.SIGQUIT)
    assert_gone(tree, asked, 30)
    end = launched.facts
    assert (end.phase, outcome(end.exit)) == ("exited", (None, signal.SIGKILL))


def test_quit_cuts_a_stop_short(start: Launcher) -> None:
    launched = start("ignore-term", "say:ready", "wait", kill_after_s=60)
    launched.await_line("ready")
    launched.signal(signal.SIGTERM)
    launched.await_phase("stopping")
    launched.signal(signal.SIGQUIT)
    assert outcome(launched.await_end().exit) == (None, signal.SIGKILL)


def test_hangup_interrupt_and_pipe_signals_are_ignored(start: Launcher) -> None:
    launched = start("say:ready", "wait")
    launched.await_line("ready")
    for identity in (launched.facts.shim, launched.facts.guard):
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            assert facts.signal(identity, number)
    # A stop that works shows that both still live, and that the signals before it did nothing.
    launched.signal(signal.SIGTERM)
    assert outcome(launched.await_end().exit) == (None, signal.SIGTERM)


def test_what_forks_without_end_is_killed(start: Launcher) -> None:
    launched = start("fork:breed", "say:ready", "wait")
    launched.await_line("ready")
    launched.signal(signal.SIGQUIT)
    launched.await_end()


# SIGKILL of each part


@pytest.mark.parametrize("part", ["shim", "guard"])
def test_kill_of_shim_or_guard_takes_the_whole_tree_down(start: Launcher, part: str, tmp_path: Path) -> None:
    lock = tmp_path / "gpu.lock"
    launched = start(
        "ignore-term", "orphan:ignore-term", "fork:setsid,ignore-term", "say:ready", "wait", locks=[str(lock)]
    )
    launched.await_line("ready")
    tree = await_children(launched, 2)
    assert locked(lock)
    killed = time.monotonic()
    assert facts.signal(getattr(launched.facts, part), signal.SIGKILL)
    assert_gone(tree, killed, 30)
    end = launched.facts
    assert (end.phase, end.error) == ("exited", f"{part} was killed")
    assert outcome(end.exit) == (None, signal.SIGKILL)
    assert launched.lines()[-1] == f"gpubox: {part} was killed: all processes of demo were ended"
    assert not locked(lock)


def test_kill_of_shim_and_guard_at_once_still_ends_the_main_process(start: Launcher) -> None:
    launched = start("ignore-term", "say:ready", "wait")
    launched.await_line("ready")
    tree = launched.tree()
    # Stopped, the guard cannot act before it is killed too.
    facts.signal(launched.facts.guard, signal.SIGSTOP)
    killed = time.monotonic()
    facts.signal(launched.facts.shim, signal.SIGKILL)
    facts.signal(launched.facts.guard, signal.SIGKILL)
    assert_gone(tree, killed, 30)


def test_kill_of_the_main_process_leaves_no_orphan(start: Launcher) -> None:
    """vLLM: SIGKILL of the API server leaves EngineCore alive, with the GPU's memory."""
    launched = start("fork:setsid,ignore-term", "orphan:ignore-term", "say:ready", "wait")
    launched.await_line("ready")
    tree = await_children(launched, 2)
    engine = launched.facts.engine
    assert engine is not None
    killed = time.monotonic()
    facts.signal(engine, signal.SIGKILL)
    assert_gone(tree, killed, 30)
    end = launched.facts
    assert (end.phase, end.error, end.stop_asked_at) == ("exited", None, None)
    assert outcome(end.exit) == (None, signal.SIGKILL)


def test_a_clean_exit_leaves_no_orphan(start: Launcher) -> None:
    """vLLM: a crash exits 0; whoever of the tree still holds the output open must go, and the log must end."""
    launched = start("orphan:ignore-term,say:orphan ready", "sleep:0.1", "exit:0")
    launched.await_line("orphan ready")
    end = launched.await_end()
    assert outcome(end.exit) == (0, None)
    assert launched.lines()[-1] == "gpubox: engine ended with exit code 0"


def test_descendants_get_a_moment_to_tidy_up(start: Launcher) -> None:
    launched = start("fork:sleep:0.2,say:tidied up,exit:0", "exit:0")
    launched.await_end()
    assert "tidied up" in launched.lines()


# Shared memory


def shm_name(tmp_path: Path, what: str) -> str:
    return f"psm_gpubox_test_{os.getpid()}_{tmp_path.name}_{what}"


@pytest.mark.parametrize("victim", ["shim", "guard", "engine", "tree"])
def test_shared_memory_of_a_killed_tree_is_removed_and_only_that(start: Launcher, tmp_path: Path, victim: str) -> None:
    own, shared, foreign = (shm_name(tmp_path, what) for what in ("own", "shared", "foreign"))
    launched = start(f"fork:shm:{own},shm:{shared}", "wait")
    launched.await_line(f"made {shared}")
    fds = [os.open(f"/dev/shm/{name}", os.O_RDWR | os.O_CREAT, 0o600) for name in (shared, foreign)]
    os.ftruncate(fds[1], 4096)
    kept = mmap.mmap(fds[0], 4096)
    os.close(fds[0])
    try:
        target = launched.facts.shim if victim == "tree" else getattr(launched.facts, victim)
        facts.signal(target, signal.SIGQUIT if victim == "tree" else signal.SIGKILL)
        launched.await_end()
        assert not os.path.exists(f"/dev/shm/{own}")
        assert os.path.exists(f"/dev/shm/{shared}"), "another living process has it mapped"
        assert os.path.exists(f"/dev/shm/{foreign}"), "it was never the tree's"
    finally:
        kept.close()
        os.close(fds[1])
        for name in (own, shared, foreign):
            Path(f"/dev/shm/{name}").unlink(missing_ok=True)


def test_shared_memory_is_known_before_all_die_at_once(start: Launcher, tmp_path: Path) -> None:
    own = shm_name(tmp_path, "own")
    launched = start(f"shm:{own}", "wait")
    launched.await_line(f"made {own}")
    try:
        # The guard looks half a second after the file was made, and tells nobody.
        time.sleep(0.8)
        engine = launched.facts.engine
        assert engine is not None
        facts.signal(engine, signal.SIGKILL)
        launched.await_end()
        assert not os.path.exists(f"/dev/shm/{own}")
    finally:
        Path(f"/dev/shm/{own}").unlink(missing_ok=True)
