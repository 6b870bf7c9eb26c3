"""Starts on a GPU that servers share happen one after another: vLLM measures its memory while it starts.

Such a launch stops at a gate of its own, after all that needs no GPU (a download) is done. The keeper opens the gate
once it holds the turn for all its GPUs and these have room, and gives the turn back once the server is ready or gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backends.engines.base import Step
from backends.errors import GpuboxError
from backends.keeper.rooms import claim, memory_in
from backends.snapshots import Box, Missing, ServerState
from backends.starts import Stage

if TYPE_CHECKING:
    from backends.keeper.subject import Subject

GATE = Path(__file__).parents[1] / "processes" / "gate.py"
GATE_LABEL = "turn"
LOOK_S = 0.25


def gate_path(folder: Path) -> Path:
    """Return where a launch's gate is."""
    return folder / "gate"


def gate_step(folder: Path) -> Step:
    """Return the step that waits at the gate of the launch in `folder`."""
    return Step(GATE_LABEL, (sys.executable, "-I", "-S", str(GATE), str(gate_path(folder))))


class Turn:
    """The turn of one server, held until it is given back or the keeper ends."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._held: list[int] = []

    async def await_gate(self) -> None:
        """Bring a queued server through its gate; returns once it is starting, or is no longer queued."""
        while self._subject.state is ServerState.QUEUED:  # a flock of another keeper tells of no event
            facts = self._subject.facts()
            if facts is not None and facts.step == GATE_LABEL:
                obstacle = await self._obstacle()
                if obstacle is None and self._subject.state is ServerState.QUEUED and self._open_gate():
                    self._subject.become(ServerState.STARTING, stage=None)
                    return
                self._say(GATE_LABEL, obstacle or "")
            elif facts is not None and facts.step:
                self._say(facts.step, "")
            elif facts is not None and facts.phase not in ("starting", "running"):
                return
            await asyncio.sleep(LOOK_S)

    def take_up(self) -> None:
        """Hold the turn of a start that a keeper before this one has let through, if nobody else has it now."""
        if not self._held:
            self._held = self._subject.around.ledger.try_turn(self._subject.record.gpus) or []

    def give_back(self) -> None:
        """Let the next one start."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held = []

    async def _obstacle(self) -> str | None:
        """Take the turn, and say what still keeps the server from starting; None where nothing does."""
        record = self._subject.record
        if not self._held:
            self._held = self._subject.around.ledger.try_turn(record.gpus) or []
        if not self._held:
            return "another server starts there"
        box = await self._subject.around.box.fresh()
        for gpu in box.gpus:
            needed = record.reserved.get(gpu.uuid)
            free = gpu.memory_free_bytes
            if needed is not None and not isinstance(free, Missing) and free < needed:
                self.give_back()
                return f"GPU {gpu.index} has {free / 2**30:.1f} GiB free, {needed / 2**30:.1f} are needed"
        return await self._unclaimed(box) if record.spare else None

    async def _unclaimed(self, box: Box) -> str | None:
        """Be granted all that a warm spare needs; says why that cannot be."""
        around, record = self._subject.around, self._subject.record
        promised = around.switching.promised(record.name)
        try:
            await asyncio.to_thread(claim, around.ledger, record, memory_in(box), promised, must_be_free=False)
        except GpuboxError as problem:
            self.give_back()
            return problem.message
        return None

    def _open_gate(self) -> bool:
        try:
            descriptor = os.open(gate_path(self._subject.record.folder), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # the step has not opened its end yet
            return False
        try:
            return os.write(descriptor, b"1") == 1
        finally:
            os.close(descriptor)

    def _say(self, name: str, detail: str) -> None:
        stage = self._subject.server.stage
        if stage is None or (stage.name, stage.detail) != (name, detail):
            since = stage.since if stage is not None and stage.name == name else time.time()
            self._subject.show(stage=Stage(name, since, None, detail))
