"""What commands answer beside one server that runs, one that failed and one that was stopped; and what they refuse."""

from __future__ import annotations

import json
import os
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from backends import paths
from backends.processes.logs import log_starts
from backends.snapshots import Missing, ServerState, Snapshot, load
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile
from tui.__main__ import main


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with the servers `fake` (ready), `gone` (stopped) and `sick` (failed); nothing here changes them."""
    with box_in(tmp_path_factory.mktemp("home")) as box:
        for profile in (fake_profile(), fake_profile("gone"), fake_profile("sick", fail="no luck today")):
            box.keep_profile(profile)
            box.start(profile)
        box.until(lambda s: not isinstance(s.metrics, Missing))
        box.until(ServerState.READY, "gone")
        box.client.stop("gone")
        box.until(ServerState.STOPPED, "gone")
        box.until(ServerState.FAILED, "sick")
        yield box


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def said(busy: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process, which is quicker by a third of a second."""

    def run(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["gpubox", *args])
        code = main()
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


def test_status_shows_each_server_as_it_is(busy: Box) -> None:
    told = busy.gpubox("status").stdout
    rows = {line.split()[0]: line for line in told.splitlines() if line}
    fake = busy.server()
    assert re.match(rf"fake +ready +fake +cpu +{fake.port} +25% ", rows["fake"])
    assert re.match(r"gone +stopped +fake +cpu ", rows["gone"])
    assert re.match(r"sick +failed +fake +cpu ", rows["sick"])
    sick = busy.server("sick")
    assert f"sick: ValueError: no luck today (exit code 1)\n  log: {sick.log_path}\n" in told
    assert f"keeper {busy.keeper_pids()[0]}" in told


def test_status_as_json_is_the_keepers_own_snapshot(busy: Box) -> None:
    printed = busy.gpubox("status", "--json").stdout
    own = [server for server in json.loads(printed)["servers"] if server["foreign"] is None]
    assert {server["name"]: server["state"] for server in own} == {
        "fake": "ready",
        "gone": "stopped",
        "sick": "failed",
    }
    snapshot = load(Snapshot, printed)
    now = busy.client.snapshot()
    assert snapshot.keeper == now.keeper
    assert [(server.name, server.pid, server.log_path) for server in snapshot.servers] == [
        (server.name, server.pid, server.log_path) for server in now.servers
    ]


def test_status_goes_on_where_asked(busy: Box) -> None:
    child = busy.spawn("status", "--watch", "--json")
    assert child.stdout is not None
    times = [json.loads(child.stdout.readline())["box"]["at"] for _ in range(2)]
    assert times[1] > times[0]
    child.stdout.close()
    assert child.wait(PATIENCE_S) == 0
    assert child.stderr is not None
    assert child.stderr.read() == ""


def test_status_answers_quickly(busy: Box, capsys: pytest.CaptureFixture[str]) -> None:
    def took_s() -> tuple[float, float]:
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.gpubox("status")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - begun, cpu_s

    took = [took_s() for _ in range(5)]
    wall_s, cpu_s = (statistics.median(column) for column in zip(*took, strict=True))
    with capsys.disabled():
        print(f"\nstatus: {wall_s:.2f} s, {cpu_s:.2f} s of them computing (load {os.getloadavg()[0]:.1f})")
    assert cpu_s < 1.5  # of its own: how long it waits for a busy machine says nothing of it


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--headless", "--headless needs --profile NAME"),
        ("--headless --profile fake --port foo", "--port 'foo' is not a port"),
        ("--headless --profile fake --port 65536", "--port '65536' is not a port"),
        ("--headless --profile fake --gpus", "'--gpus' requires an argument"),
        ("--headless --profile fake --gpus=", "--gpus names no GPU"),
        ("--headless --profile gone --gpus 0", "profile gone is for the CPU"),
        ("--headless --profile fake --name ../up", "'../up' cannot be a server's name"),
        ("--headless --profile fake --wait -1", "'--wait': Input should be greater than or equal to 0"),
        ("--headless --profile fake --foreground --wait 5", "--foreground goes without --wait, --json and --asleep"),
        ("--headless --profile fake --simulate 8xH200", "--simulate is for the screen"),
        ("--profile fake --foreground", "--foreground goes with --headless"),
        ("--profile fake --wait 3", "--wait goes with --headless"),
        ("--json status", "--json does not go before status"),
        ("--bogus", "No such option: --bogus"),
        ("", "the control center needs a terminal"),
        ("stat", "No such command 'stat'. Did you mean 'status'"),
        ("status too much", "unexpected extra argument"),
        ("stop", "name servers to stop, or say --all"),
        ("stop fake --all", "name servers to stop, or say --all"),
        ("logs", "Missing argument 'name'"),
        ("logs fake -n few", "'-n' / '--lines': Input should be a valid integer"),
        ("logs fake --since yesterday", "--since 'yesterday' is no time"),
        ("logs fake --grep [", "--grep '[' is no regular expression"),
        ("logs fake --start -9", "fake has 1 start on record"),
    ],
)
def test_a_command_that_makes_no_sense_is_told_in_one_line(said: Callable[..., Said], line: str, says: str) -> None:
    done = said(*line.split())
    assert done.code == 2
    first, *hint = done.err.splitlines()
    assert first.startswith("gpubox: ")
    assert says in first
    assert len(hint) <= 1
    assert all(text.startswith("  → ") for text in hint)
    assert done.out == ""


@pytest.mark.parametrize("line", ["--headless --profile", "--bogus", "", "logs"])
def test_so_it_is_in_a_process_of_its_own(busy: Box, line: str) -> None:
    done = busy.gpubox(*line.split(), code=2)
    assert done.stderr.startswith("gpubox: ")
    assert done.stdout == ""


def test_help_tells_the_exit_codes(busy: Box) -> None:
    told = " ".join(busy.gpubox("--help").stdout.split())
    for code, word in {2: "bad usage", 3: "bad profile", 4: "no such GPU", 5: "GPU busy", 6: "start failed"}.items():
        assert f"{code} {word}" in told
    assert "7 waiting over (the server keeps starting)" in told
    assert "Usage: gpubox logs [OPTIONS]" in busy.gpubox("logs", "--help").stdout
    assert "Commands:" in busy.gpubox("profiles", code=2).stderr
    assert re.match(r"gpubox \d", busy.gpubox("--version").stdout)


def test_every_problem_of_a_profile_is_told_in_a_line_of_its_own(busy: Box, tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_text('engine = "vllm"\nmodle = "x"\nmodel = "/models/x"\ndrain = 3\ngpus = "cpu"\n')
    done = busy.gpubox("--headless", "--profile-dir", str(tmp_path), "--profile", "odd", code=3)
    assert done.stderr.startswith("gpubox: ")
    assert f"{file}:2: modle: no such key; did you mean model?\n" in done.stderr
    assert f"{file}:4: drain: no such key; did you mean drain_s?\n" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (["--profile", "fakee"], "fakee: no such profile; did you mean fake?"),
        (["--profile", "/no/such.toml"], "/no/such.toml: cannot be read: No such file or directory"),
        (["--profile", "fake", "--set", "max_model_len"], "--set max_model_len: is not KEY=VALUE"),
        (["--profile", "fake", "--set", "port=1"], "args.port: is set by gpubox itself"),
        (["--profile", "fake", "--env", "HF_TOKEN=x"], "env.HF_TOKEN: is a key by its name"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(said: Callable[..., Said], wishes: list[str], says: str) -> None:
    done = said("--headless", *wishes)
    assert done.code == 3
    assert says in " ".join(done.err.replace("\n  → ", "; ").split())


@pytest.mark.parametrize("line", ["stop nobody", "restart nobody", "forget nobody", "logs nobody", "chat nobody hello"])
def test_a_server_that_is_not_there_is_told(said: Callable[..., Said], line: str) -> None:
    done = said(*line.split())
    assert done.code == 9
    assert "nobody" in done.err.splitlines()[0]
    assert len(done.err.splitlines()) == 2


def test_a_home_that_cannot_be_used_is_told_in_one_line(busy: Box, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    environ = busy.environ | {"GPUBOX_HOME": str(tmp_path / "file")}
    done = subprocess.run(busy.command("restart", "fake"), env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gpubox: ")
    assert str(tmp_path / "file") in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_output_that_cannot_be_written_is_no_trouble(busy: Box) -> None:
    def status(shell: str, **environ: str) -> tuple[int, str, str]:
        command = f"{shlex.join(busy.command('status'))} {shell}"
        done = subprocess.run(
            ["sh", "-c", command], env=busy.environ | environ, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, shown, _ = status("", PYTHONIOENCODING="ascii")
    assert (code, shown[:9]) == (0, "gpubox ? ")
    assert status(">&-") == (0, "", "")
    code, _, said = status("> /dev/full")
    assert (code, said) == (1, "gpubox: [Errno 28] No space left on device\n")


def test_logs_prints_the_whole_log_or_the_part_that_is_asked_for(busy: Box, said: Callable[..., Said]) -> None:
    path = Path(busy.server().log_path or "")
    lines = path.read_text().splitlines()
    assert busy.gpubox("logs", "fake").stdout.splitlines() == lines
    assert said("logs", "fake", "-n", "2").out.splitlines() == lines[-2:]
    assert said("logs", "fake", "-n", "0").out == ""
    assert said("logs", "fake", "--since", "1h").out.splitlines() == lines
    assert said("logs", "fake", "--since", "1h", "-n", "1").out.splitlines() == lines[-1:]
    assert said("logs", "fake", "--since", "2099-01-01").out == ""
    found = said("logs", "fake", "--grep", "safetensors .* 100%").out.splitlines()
    assert found == [line for line in lines if "100%" in line]
    assert len(found) == 1


def test_logs_ends_quietly_where_its_reader_does(busy: Box) -> None:
    """`gpubox logs big | head -1`, with more to say than a pipe holds; and with less, to a reader that is gone."""
    stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
    big = paths.log_dir() / "big-20260101-000000.log"
    big.write_text(f"{stamp} a line of the log\n" * 20_000)
    try:
        child = busy.spawn("logs", "big")
        assert child.stdout is not None
        assert child.stdout.readline() == f"{stamp} a line of the log\n"
        child.stdout.close()
        assert child.stderr is not None
        assert (child.wait(PATIENCE_S), child.stderr.read()) == (0, "")
    finally:
        big.unlink()
    readable, writable = os.pipe()
    os.close(readable)
    assert busy.gpubox("status", stdout=writable).stderr == ""
    os.close(writable)


def test_logs_follows_into_the_next_start(busy: Box) -> None:
    """On files of its own, so that no start has to be waited for."""
    folder = paths.log_dir()
    at = datetime.now().astimezone() - timedelta(minutes=1)

    def line(text: str) -> str:
        return f"{at.isoformat(timespec='milliseconds')} {text}\n"

    first, second = folder / "long-20260101-000000.log", folder / "long-20260101-000100.log"
    first.write_text("".join(line(f"old {number}") for number in range(30)))
    child = busy.spawn("logs", "long", "-f", "-n", "2", "--grep", "new|old")
    try:
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == [line("old 28"), line("old 29")]
        with first.open("a") as file:
            file.write(line("boring") + line("new 1") + line("new 2")[:-1])
            file.flush()
            assert child.stdout.readline() == line("new 1")
            file.write("\n")
        assert child.stdout.readline() == line("new 2")
        second.write_text(line("new 3"))
        assert child.stdout.readline() == line("new 3")
        assert [start.path for start in log_starts(folder, "long")] == [second, first]
        assert busy.gpubox("logs", "long", "--start", "-1", "-n", "1").stdout == line("new 2")
        assert busy.gpubox("logs", "long").stdout == line("new 3")
        child.send_signal(2)
        assert child.wait(PATIENCE_S) == 130
        assert child.stderr is not None
        assert child.stderr.read() == f"==> {second} <==\n"
    finally:
        first.unlink()
        second.unlink(missing_ok=True)
