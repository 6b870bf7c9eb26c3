"""What can be told of the box without a keeper: so that `status` need not start one where nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.orphans import Orphan
from backends.readonly import forbids
from backends.snapshots import Box, Missing, Server, ServerState, Snapshot

if TYPE_CHECKING:
    from backends.keeper.record import Record


def snapshot_now() -> Snapshot:
    """Return the keeper's snapshot; where there is no keeper, start one only if there may be a server to follow.

    Where nothing may be started, what is on record and in /proc is told instead. Raises KeeperError.
    """
    client = KeeperClient()
    if client.is_up():
        return client.snapshot()
    if forbids():
        return snapshot_without_keeper()
    from backends.keeper.foreign_scan import find_servers
    from backends.keeper.record import ended_servers, read_all

    records = read_all()
    if any(not record.ended for record in records) or find_servers(_servers_dir(), {}):
        return ensure_keeper(client).snapshot()
    return Snapshot(None, _box({}), ended_servers(records))


def orphans_now(snapshot: Snapshot) -> tuple[Orphan, ...]:
    """Return what servers of ours have left behind, as the keeper of `snapshot` tells it, or as /proc shows it."""
    if snapshot.keeper is not None:
        return KeeperClient().orphans()
    from backends.gpus.ownership import Origins

    return Origins(_servers_dir(), {}).orphans(snapshot.box)


def snapshot_without_keeper() -> Snapshot:
    """Return box and servers as NVML, the records and /proc tell them; nothing is started, asked or written."""
    from backends.keeper.record import Record
    from backends.processes.facts import is_alive, read_facts
    from backends.snapshots import load

    servers, roots = [], {}
    for path in sorted(_servers_dir().glob("*/server.json")):
        try:
            record = load(Record, path.read_bytes())
        except (OSError, ValueError):
            continue
        facts = read_facts(record.facts_path)
        lives = not isinstance(facts, Missing) and is_alive(facts.shim)
        if lives and not isinstance(facts, Missing):
            roots[facts.shim.pid] = record.name
        server = _unkept(record, lives=lives)
        if server is not None:
            servers.append(server)
    return Snapshot(None, _box(roots), tuple(servers))


def _unkept(record: Record, *, lives: bool) -> Server | None:
    """Return a server as its record and its shim tell it; None where its profile is not understood."""
    from backends.engines.registry import engine_named
    from backends.keeper.record import server_of
    from profiles.errors import InvalidProfileError
    from profiles.schema import parse_profile

    try:
        profile = parse_profile(record.profile, f"server {record.name}")
    except InvalidProfileError:
        return None
    if record.ended:
        state = ServerState.FAILED if record.cause else ServerState.STOPPED
    elif not lives:
        state = ServerState.LOST
    else:
        state = ServerState.STARTING if record.ready_at is None else ServerState.READY
    return server_of(record, profile, engine_named(profile.engine), state)


def _box(roots: dict[int, str]) -> Box:
    from backends.gpus.host import HostReader
    from backends.gpus.nvml import Nvml
    from backends.gpus.ownership import Origins, attributed
    from backends.gpus.sampler import BoxSampler

    return attributed(BoxSampler(Nvml(), HostReader()).sample(), Origins(_servers_dir(), roots))


def _servers_dir() -> Path:
    return paths.state_dir() / "servers"
