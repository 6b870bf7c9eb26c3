"""What an older gpubox wrote or sent is still read, and the digest of a profile lasts over the keeper's end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.engines.registry import engine_named
from backends.gpu_readings import NOT_WATCHED
from backends.keeper.record import Record, read_all, save, server_of
from backends.simulation import SimulatedKeeper
from backends.snapshots import Missing, ServerState, Snapshot, StartRequest, dump, load
from backends.wire import read_as
from profiles.schema import parse_profile

DIGEST = "ab" * 32


@pytest.mark.parametrize("read", [load, read_as])
def test_readings_of_gpus_from_before_their_faults_were_read(read: object) -> None:
    said = json.loads(dump(SimulatedKeeper().snapshot()))
    for gpu in said["box"]["gpus"]:
        for name in ("ecc", "throttling", "xids"):
            del gpu[name]
    for server in said["servers"]:
        del server["profile_digest"]
    snapshot: Snapshot = read(Snapshot, json.dumps(said).encode())  # type: ignore[operator]
    assert len(snapshot.box.gpus) == 8
    assert all(isinstance(gpu.ecc, Missing) and isinstance(gpu.throttling, Missing) for gpu in snapshot.box.gpus)
    assert {gpu.xids for gpu in snapshot.box.gpus} == {NOT_WATCHED}
    assert {server.profile_digest for server in snapshot.servers} == {None}


@pytest.mark.parametrize("read", [load, read_as])
def test_faults_come_over_the_socket_whole(read: object) -> None:
    snapshot = SimulatedKeeper("8xH200,1xRTX4090").snapshot()
    assert any(gpu.xids for gpu in snapshot.box.gpus)
    assert read(Snapshot, dump(snapshot)) == snapshot  # type: ignore[operator]


def test_a_start_request_from_before_the_digest() -> None:
    said = json.loads(dump(StartRequest({"name": "x"}, {}, profile_digest=DIGEST)))
    assert load(StartRequest, json.dumps(said)).profile_digest == DIGEST
    del said["profile_digest"]
    assert load(StartRequest, json.dumps(said)).profile_digest is None


def test_the_digest_lasts_over_the_keepers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    content = {"name": "x", "model": "org/m", "gpus": "cpu"}
    record = Record(
        name="x",
        profile=content,
        environ={},
        gpus=(),
        gpu_indices=(),
        port=8000,
        any_port=True,
        launch="1",
        log_path="/no/such.log",
        launched_at=1.0,
        profile_digest=DIGEST,
    )
    save(record)
    (found,) = read_all()
    profile = parse_profile(content, "test")
    assert server_of(found, profile, engine_named(profile.engine), ServerState.READY).profile_digest == DIGEST
