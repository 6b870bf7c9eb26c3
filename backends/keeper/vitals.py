"""Watching the processes that an engine cannot do without: their death is seen at once.

vLLM's API server notices the death of its engine core or of a worker only after 5 s, and answers /metrics meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

import psutil

from backends.keeper.launching import readable
from backends.processes.facts import signal as send_signal
from backends.snapshots import ServerState

if TYPE_CHECKING:
    from backends.keeper.subject import Subject

VITAL = "VLLM::"
"""What vLLM's engine cores and workers are called; the kernel keeps 15 characters of it."""

LOOK_S = 5.0
ENDS_WITHIN_S = 8.0
"""So long the API server gets to end by itself, telling the cause in its log; then the tree is killed."""


async def watch_vitals(subject: Subject) -> None:
    """Follow a ready engine's cores and workers, asleep too; where one dies unasked, say so and see that all ends."""
    watched: dict[int, asyncio.Task[tuple[int, str]]] = {}
    try:
        while True:
            facts = subject.facts()
            found = await asyncio.to_thread(_vital_processes, facts.guard.pid) if facts else {}
            for pid, name in found.items():
                if pid not in watched:
                    watched[pid] = asyncio.create_task(_death_of(pid, name), name=f"{name} of {subject.name}")
            if not watched:
                await asyncio.sleep(LOOK_S)
                continue
            done, _ = await asyncio.wait(watched.values(), timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
            if done:
                await _mourn(subject, *done.pop().result())
                return
    finally:
        for task in watched.values():
            task.cancel()
        await asyncio.gather(*watched.values(), return_exceptions=True)


async def _mourn(subject: Subject, pid: int, name: str) -> None:
    if not subject.record.wanted:
        return
    subject.doomed = True
    if subject.state in (ServerState.READY, ServerState.SLEEPING):
        subject.become(ServerState.UNRESPONSIVE)
    subject.tell("died", f"{name} (pid {pid}) has died")
    await asyncio.sleep(ENDS_WITHIN_S)
    facts = subject.facts()
    if facts is not None and subject.record.wanted:
        send_signal(facts.shim, signal.SIGQUIT)


async def _death_of(pid: int, name: str) -> tuple[int, str]:
    """Wait for the end of a process; one that is gone already has ended."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            await readable(descriptor)
        finally:
            os.close(descriptor)
    return pid, name


def _vital_processes(root: int) -> dict[int, str]:
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return {}
    found = {}
    for process in below:
        with contextlib.suppress(psutil.Error):
            if (name := process.name()).startswith(VITAL):
                found[process.pid] = name
    return found
