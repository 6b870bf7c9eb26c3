"""What can be told of the box without a keeper: so that `status` need not start one where nothing runs."""

from __future__ import annotations

from backends.client import KeeperClient, ensure_keeper
from backends.snapshots import Snapshot


def snapshot_now() -> Snapshot:
    """Return the keeper's snapshot; where there is no keeper, start one only if an engine of ours may still run.

    Raises KeeperError.
    """
    client = KeeperClient()
    if client.is_up():
        return client.snapshot()
    from backends.keeper.record import ended_servers, read_all

    records = read_all()
    if any(not record.ended for record in records):
        return ensure_keeper(client).snapshot()
    from backends.gpus.host import HostReader
    from backends.gpus.nvml import Nvml
    from backends.gpus.sampler import BoxSampler

    return Snapshot(None, BoxSampler(Nvml(), HostReader()).sample(), ended_servers(records))
