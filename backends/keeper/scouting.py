"""Looking at a start's processes, folders and GPUs once a second: what its log does not tell."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from backends.engines.stages import DOWNLOAD, STEPS, WEIGHTS
from backends.keeper.activity import read_activity, waits_for
from backends.keeper.measure import Download, Loading, hub_folder, lock_folders, model_folder
from backends.keeper.progress import StartWatch
from backends.snapshots import Box, Missing, Owner

if TYPE_CHECKING:
    from backends.engines.base import StageMark
    from backends.keeper.progress import Activity
    from backends.keeper.subject import Subject


class Scout:
    """Looks after one start; every reading is taken in a thread. `waits_for` is set once it looks wedged."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._environ = {**subject.record.environ, **subject.profile.env}
        hub = hub_folder(subject.profile, self._environ)
        weights = model_folder(subject.profile, self._environ)
        self._download = Download(hub) if hub else None
        self._loading = Loading(weights) if weights else None
        # Earlier than that, only small files are fetched, and the stages that are still to come would be passed over.
        order = (*STEPS, *subject.engine.stages)
        self._may_fetch = (order[order.index(DOWNLOAD) - 1], DOWNLOAD, WEIGHTS)
        self.waits_for = ""

    async def look(self, root: int, watch: StartWatch) -> None:
        """Tell `watch` what the tree below `root` uses, fetches and loads."""
        gpu_bytes = _held_bytes(await self._subject.around.box.box(), self._subject.name)
        stage = watch.stage.name if watch.stage else None
        activity, mark = await asyncio.to_thread(self._read, root, gpu_bytes, stage)
        now = time.time()
        watch.see_activity(activity, now)
        if mark is not None:
            watch.see_measured(mark, now)
        if watch.progress(now).quiet_since is None:
            self.waits_for = ""
        else:
            folders = lock_folders(self._subject.profile, self._environ)
            self.waits_for = await asyncio.to_thread(waits_for, root, folders, watch.last_line)

    def _read(self, root: int, gpu_bytes: int, stage: str | None) -> tuple[Activity, StageMark | None]:
        activity, mark = read_activity(root, gpu_bytes), None
        if self._download is not None and stage in self._may_fetch:
            mark = self._download.mark(time.time())
        if mark is None and self._loading is not None and stage == WEIGHTS:
            held = gpu_bytes if self._subject.record.gpus else activity.memory_bytes
            mark = self._loading.mark(activity.disk_bytes, held)
        return activity, mark


def _held_bytes(box: Box, server: str) -> int:
    """Return what a server's processes hold on all GPUs."""
    shares = [share for gpu in box.gpus for share in gpu.shares if share.owner is Owner.SERVER and share.who == server]
    return sum(0 if isinstance(share.memory_bytes, Missing) else share.memory_bytes for share in shares)
