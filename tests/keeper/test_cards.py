"""From a failure to its cure by the command line: a real keeper, a real log, a real profile file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import paths
from backends.snapshots import ServerState
from tests.keeper.conftest import Box, fake_profile

KV = (
    "To serve at least one request with the model's max seq len (32768), (1.75 GiB KV cache is needed, which is larger "
    "than the available KV cache memory (0.35 GiB). Based on the available memory, the estimated maximum model length "
    "is 6496. Try increasing gpu_memory_utilization"
)
TEXT = """\
# kept
model = "/models/fake"
served_name = "fake"
gpus = "cpu"
python = "{python}"

[args]
max_model_len = 32768  # too much
{fail}
"""


@pytest.fixture
def box(lasting_box: Box) -> Iterator[Box]:
    yield lasting_box
    lasting_box.sweep()


def failed(box: Box, *more: str) -> Path:
    """Start a server that fails for want of a KV cache; return its profile's file."""
    python = fake_profile()["python"]
    path = paths.private(paths.profile_dir()) / "fake.toml"
    path.write_text(TEXT.format(python=python, fail=f'fake_fail = "{KV}"'))
    box.gpubox("--headless", "--profile", "fake", *more, code=6)
    return path


def test_a_failed_server_has_a_card(box: Box) -> None:
    failed(box)
    server = box.until(ServerState.FAILED)
    assert server.card is not None
    assert server.card.cause == "kv-cache-too-small"
    assert server.card.remedies[0].set == {"args.max_model_len": 6496}
    assert server.cause is not None
    assert server.cause.endswith("0.35 GiB are left for it (exit code 1)")
    told = json.loads(box.gpubox("diagnose", "fake", "--json").stdout)
    assert told["cause"] == server.card.cause
    assert server.log_path is not None
    assert server.card.evidence is not None
    assert told["evidence"]["line"] == server.card.evidence.line
    line = Path(server.log_path).read_text().split("\n")[told["evidence"]["line"] - 1]
    assert "max seq len (32768)" in line


def test_fix_shows_a_diff_and_changes_nothing(box: Box) -> None:
    path = failed(box)
    before = path.read_text()
    done = box.gpubox("fix", "fake")
    assert "-max_model_len = 32768  # too much" in done.stdout
    assert "+max_model_len = 6496  # too much" in done.stdout
    assert "--apply" in done.stderr
    assert path.read_text() == before
    assert box.server().state is ServerState.FAILED


def test_fix_apply_changes_the_file_and_starts_with_the_overrides_of_before(box: Box) -> None:
    path = failed(box, "--set", "fake_kind=completion", "--set", "fake_start=0.1")
    # What made it fail is gone from the file meanwhile; what the start laid over it is still on record.
    done = box.gpubox("fix", "fake")
    assert "it was started with other than the file says" in done.stderr
    assert "args.fake_kind = completion" in done.stderr
    box.gpubox("fix", "fake", "--apply", code=6)
    assert path.read_text().startswith("# kept\n")
    assert "max_model_len = 6496  # too much" in path.read_text()
    args = box.client.profile("fake")["args"]
    assert (args["max_model_len"], args["fake_kind"]) == (6496, "completion")


def test_a_fix_that_cures_ends_in_a_ready_server(box: Box) -> None:
    python = fake_profile()["python"]
    path = paths.private(paths.profile_dir()) / "fake.toml"
    head = f'model = "/m"\nserved_name = "fake"\ngpus = "cpu"\npython = "{python}"\n'
    path.write_text(f'{head}[args]\nfake_start = 0.1\nmax_model_len = "8kk"\n')
    box.gpubox("--headless", "--profile", "fake", code=6)
    assert box.server().card is not None
    done = box.gpubox("fix", "fake", "--apply")
    assert '-max_model_len = "8kk"' in done.stdout
    assert path.read_text() == f"{head}[args]\nfake_start = 0.1\n"
    ready = box.until(ServerState.READY)
    assert ready.card is None


def test_there_is_nothing_to_fix_where_nothing_failed(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    assert "there is no failure to fix" in box.gpubox("fix", "fake", code=10).stderr
    assert "there is no server nix" in box.gpubox("fix", "nix", code=9).stderr


def test_what_no_change_cures_is_said_so(box: Box) -> None:
    box.start(fake_profile(fail="the model is haunted"))
    server = box.until(ServerState.FAILED)
    assert server.cause == "ValueError: the model is haunted (exit code 1)"
    assert "no change of the profile cures this" in box.gpubox("fix", "fake", code=1).stderr


def test_diagnose_needs_no_keeper(box: Box) -> None:
    failed(box)
    box.client.shutdown()
    told = json.loads(box.gpubox("diagnose", "fake", "--json").stdout)
    assert told["cause"] == "kv-cache-too-small"
    assert told["remedies"][0]["set"] == {"args.max_model_len": 6496}


def test_a_server_that_was_stopped_as_asked_has_no_failure(box: Box) -> None:
    box.start(fake_profile())
    box.until(ServerState.READY)
    box.client.stop("fake")
    box.until(ServerState.STOPPED)
    assert box.gpubox("diagnose", "fake").stdout.startswith("none: its log tells of no failure")
    assert json.loads(box.gpubox("diagnose", "fake", "--json").stdout)["remedies"] == []
