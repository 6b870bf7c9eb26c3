"""Starting, restarting and stopping servers from the command line, as scripts and people do it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import socket
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest

from backends.keeper.launching import KILL_AFTER_S
from backends.processes.facts import identity_of
from backends.snapshots import ModelKind, ServerState
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile, free_port, kill_and_wait


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    lasting_box.sweep()


def read_until(stream: IO[str], wanted: str) -> str:
    """Read lines until one holds a text; the test's own time-out ends it where none does."""
    read = ""
    for line in stream:
        read += line
        if wanted in line:
            return read
    raise AssertionError(f"{wanted!r} never came: {read}")


def in_order(text: str, *parts: str) -> bool:
    return re.search(".*".join(map(re.escape, parts)), text, re.DOTALL) is not None


def test_a_start_tells_its_stages_and_then_what_a_person_needs(box: Box) -> None:
    box.keep_profile(fake_profile(start=1))
    done = box.gpubox("--headless", "--profile", "fake", "--detach")
    ready = box.server()
    assert ready.state is ServerState.READY
    assert in_order(done.stderr, "fake: starting /models/fake on the CPU, port", " weights")
    lines = {key.strip(): rest.strip() for key, _, rest in (line.partition(":") for line in done.stdout.splitlines())}
    first = done.stdout.splitlines()[0]
    assert re.match(rf"fake is ready after \d+ s: {ready.address}/v1 \(fake, chat, context 1,024 tokens\)$", first)
    assert lines["clients"] == f"export OPENAI_BASE_URL={ready.address}/v1 OPENAI_API_KEY=none"
    assert lines["from elsewhere"].startswith(f"ssh -N -L {ready.port}:127.0.0.1:{ready.port} ")
    assert lines["log"] == ready.log_path
    curl = shlex.split(lines["ask it"])
    url, data = curl[1], curl[curl.index("-d") + 1]
    asked = urllib.request.Request(url, data.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"] == "You asked: What is a KV cache?"


def test_flags_reach_the_engine(box: Box) -> None:
    box.keep_profile(fake_profile() | {"port": "auto"})
    port = free_port()
    wishes = ["--name", "mine", "--port", str(port), "--set", "max_model_len=2048", "--env", "MARKER=given here"]
    done = box.gpubox("--headless", "--profile", "fake", *wishes, "--json")
    told = json.loads(done.stdout)
    assert (told["name"], told["profile"], told["state"], told["port"]) == ("mine", "fake", "ready", port)
    assert told["base_url"] == f"http://127.0.0.1:{port}/v1"
    assert told["kind"] == ModelKind.CHAT
    engine = psutil.Process(told["pid"])
    argv = engine.cmdline()
    assert argv[argv.index("--max-model-len") + 1] == "2048"
    assert argv[argv.index("--port") + 1] == str(port)
    assert engine.environ()["MARKER"] == "given here"


def test_a_failed_start_tells_the_cause_and_where_the_log_is(box: Box) -> None:
    box.keep_profile(fake_profile(fail="the model is haunted"))
    done = box.gpubox("--headless", "--profile", "fake", code=6)
    failed = box.server()
    assert "gpubox: fake failed: ValueError: the model is haunted (exit code 1)" in done.stderr
    assert f"log: {failed.log_path}" in done.stderr
    assert "haunted" in Path(failed.log_path or "").read_text()
    assert done.stdout == ""


def test_when_the_wait_is_over_the_server_keeps_starting(box: Box) -> None:
    box.keep_profile(box.held_profile())
    done = box.gpubox("--headless", "--profile", "fake", "--wait", "0.2", code=7)
    assert "gpubox: fake is not ready after 0.2 s; it keeps starting" in done.stderr
    assert box.server().state is ServerState.STARTING
    box.let_start()
    box.until(ServerState.READY)


def test_ctrl_c_ends_the_waiting_and_not_the_server(box: Box) -> None:
    box.keep_profile(box.held_profile())
    child = box.spawn("--headless", "--profile", "fake")
    assert child.stderr is not None
    read_until(child.stderr, "weights")
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130
    assert (stdout, stderr) == ("", "fake keeps starting; gpubox stop fake ends it\n")
    box.let_start()
    box.until(ServerState.READY)


def test_a_terminal_that_goes_away_takes_nothing_along(box: Box) -> None:
    box.keep_profile(box.held_profile())
    ours, theirs = pty.openpty()

    def take_the_terminal() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    child = box.spawn(
        "--headless",
        "--profile",
        "fake",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_the_terminal,
    )
    os.close(theirs)
    shown = b""
    while b"weights" not in shown:
        shown += os.read(ours, 4096)
    keeper = box.client.snapshot().keeper
    os.close(ours)
    assert child.wait(PATIENCE_S) == -signal.SIGHUP
    box.let_start()
    box.until(ServerState.READY)
    assert box.client.snapshot().keeper == keeper


def test_what_is_taken_is_refused(box: Box) -> None:
    box.keep_profile(fake_profile())
    box.keep_profile(fake_profile("other"))
    box.start(fake_profile())
    done = box.gpubox("--headless", "--profile", "fake", code=10)
    assert done.stderr.startswith("gpubox: server fake is ")
    assert "--name" in done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = box.gpubox("--headless", "--profile", "other", "--port", str(port), code=10)
    assert done.stderr.startswith(f"gpubox: port {port} on 127.0.0.1 is in use by pid {os.getpid()} ")


def test_restart_stops_starts_and_waits_for_the_new_launch(box: Box) -> None:
    box.start(fake_profile(start=0.5))
    before = box.until(ServerState.READY)
    done = box.gpubox("restart", "fake")
    after = box.server()
    assert after.state is ServerState.READY
    assert (after.port, after.pid == before.pid, after.log_path == before.log_path) == (before.port, False, False)
    assert done.stdout.startswith("fake is ready after ")
    assert f"{after.log_path}\n" in done.stdout
    assert before.pid is not None
    assert identity_of(before.pid) is None


def test_restart_of_a_server_that_has_ended_starts_it_as_it_was_started(box: Box) -> None:
    asked = free_port()
    box.keep_profile(fake_profile() | {"port": "auto"})
    box.gpubox("--headless", "--profile", "fake", "--port", str(asked), "--env", "MARKER=kept")
    box.gpubox("stop", "fake")
    told = json.loads(box.gpubox("restart", "fake", "--json").stdout)
    assert (told["state"], told["port"]) == ("ready", asked)
    assert psutil.Process(told["pid"]).environ()["MARKER"] == "kept"


def test_a_restart_that_is_stopped_meanwhile_ends(box: Box) -> None:
    box.start(fake_profile(ignore_term=True))
    box.until(ServerState.READY)
    child = box.spawn("restart", "fake")
    box.until(ServerState.STOPPING)
    box.client.stop("fake", force=True)
    _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 6
    assert "gpubox: fake was stopped before it was ready" in stderr
    assert box.server().state is ServerState.STOPPED


def test_stop_ends_those_that_are_named_and_all_where_asked(box: Box) -> None:
    for name in ("one", "two", "three"):
        box.start(fake_profile(name))
    pids = [box.until(ServerState.READY, name).pid for name in ("one", "two", "three")]
    done = box.gpubox("stop", "two", "nobody", code=9)
    assert done.stderr == "gpubox: there is no server nobody\n  → known: one, three, two\n"
    assert box.server("two").state is ServerState.READY
    done = box.gpubox("stop", "two")
    assert re.fullmatch(r"two stopped \(\d+\.\d s\); log: .*\.log\n", done.stderr)
    assert [box.server(name).is_live for name in ("one", "two", "three")] == [True, False, True]
    done = box.gpubox("stop", "--all")
    assert sorted(line.split()[0] for line in done.stderr.splitlines()) == ["one", "three"]
    assert [identity_of(pid or 0) for pid in pids] == [None, None, None]
    assert box.gpubox("stop", "two").stderr == "two is stopped already\n"
    assert box.gpubox("stop", "--all").stderr == "no server runs\n"


def test_a_stop_that_takes_too_long_is_told_and_force_ends_it(box: Box) -> None:
    box.start(fake_profile(ignore_term=True))
    box.until(ServerState.READY)
    done = box.gpubox("stop", "fake", "--wait", "0.3", code=7)
    assert done.stderr == "gpubox: fake is still stopping after 0.3 s\n  → gpubox stop fake --force kills it\n"
    begun = time.monotonic()
    box.gpubox("stop", "fake", "--force")
    assert time.monotonic() - begun < KILL_AFTER_S
    assert box.server().state is ServerState.STOPPED


def test_forget_drops_a_server_that_has_ended(box: Box) -> None:
    box.start(fake_profile())
    log = Path(box.until(ServerState.READY).log_path or "")
    assert "stop it first" in box.gpubox("forget", "fake", code=10).stderr
    box.gpubox("stop", "fake")
    box.gpubox("forget", "fake")
    assert box.client.snapshot().servers == ()
    assert log.exists()
    assert box.gpubox("forget", "fake", code=9).stderr == "gpubox: there is no server fake\n  → known: none yet\n"


def test_status_needs_a_keeper_only_where_something_may_run(tmp_path: Path) -> None:
    with box_in(tmp_path) as box:
        done = box.gpubox("status")
        assert "no keeper is needed" in done.stdout
        assert "no server yet; start one: gpubox --headless --profile demo" in done.stdout
        assert box.keeper_pids() == []

        box.start(fake_profile())
        before = box.until(ServerState.READY)
        (keeper,) = box.keeper_pids()
        kill_and_wait(keeper)
        told = json.loads(box.gpubox("status", "--json").stdout)
        assert told["keeper"]["pid"] in box.keeper_pids()
        assert [(server["name"], server["state"], server["port"]) for server in told["servers"]] == [
            ("fake", "ready", before.port)
        ]
