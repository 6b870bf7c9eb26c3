"""The front of a server that sleeps: launched beside its engine, kept alive while that lives, and told what is true.

It is a process of its own under a shim of its own, in the folder `front` of the launch: whatever happens to it, the
engine goes on; and it ends by itself once the engine's shim has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import paths
from backends.diagnosis.ended import how_it_ended
from backends.engines.base import SCRAPE_MARK
from backends.errors import GpuboxError
from backends.front.config import PORT_IN_USE, FrontConfig
from backends.front.link import Drained, FrontLink, FrontMode, FrontState
from backends.keeper.launching import readable
from backends.keeper.ports import is_listened_on_by
from backends.processes.facts import Identity, ProcessFacts, is_alive, open_pidfd, read_facts
from backends.processes.facts import signal as send_signal
from backends.processes.launch import launch
from backends.snapshots import Missing, ServerState

if TYPE_CHECKING:
    from backends.keeper.record import Record
    from backends.keeper.subject import Subject

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
KEY = "VLLM_API_KEY"
LISTENS_LOOK_S = 0.02
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
STEADY_S = 10.0
"""A front that lived for so long is launched again at once."""

WANTED_AGAIN_S = 0.5
ENDS_WITHIN_S = 2.0
LOG_MAX_BYTES = 4 << 20

_REFUSING = (ServerState.QUEUED, ServerState.STARTING)
_PASSING = (ServerState.READY, ServerState.UNRESPONSIVE)
_HOLDING = (ServerState.FALLING_ASLEEP, ServerState.WAKING)


class Front:
    """One server's front, through all of the server's launches; `seen` is what it told last.

    While it `expects` that a sleeping engine is about to be woken, it holds requests whatever the profile says.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._link: FrontLink | None = None
        self._up = asyncio.Event()
        self._telling = asyncio.Lock()
        self.seen: FrontState | None = None
        self.expects = False

    @property
    def folder(self) -> Path:
        """The folder of the newest launch's front."""
        return self._subject.record.folder / "front"

    @property
    def log_path(self) -> Path:
        """What it has said."""
        return self.folder / "front.log"

    def facts(self) -> ProcessFacts | None:
        """Return what its shim wrote down, once it has."""
        facts = read_facts(self.folder / "process.json")
        return None if isinstance(facts, Missing) else facts

    def lost_its_port(self) -> ProcessFacts | None:
        """Return how the front of a launch ended for which somebody else had the port; None where that is not so."""
        facts = self.facts()
        return facts if facts is not None and facts.exit is not None and facts.exit.code == PORT_IN_USE else None

    async def listens(self) -> bool:
        """Whether the front itself has the server's port."""
        if not self._up.is_set() or (facts := self.facts()) is None:
            return False
        return await asyncio.to_thread(is_listened_on_by, facts.guard.pid, self._subject.record.port)

    async def attend(self) -> None:
        """See that there is a front until this is cancelled: the one that lives is taken up, one that ends replaced.

        Where somebody else has the port while the engine starts, the engine is ended, and this returns.
        """
        pause_s, told = FIRST_PAUSE_S, ""
        while True:
            begun = time.monotonic()
            try:
                facts = self.facts()
                if facts is None or not is_alive(facts.shim):
                    await asyncio.to_thread(self._launch)
                    facts = self.facts()
                problem = await self._accompany(facts) if facts is not None else "its shim says nothing"
            except (GpuboxError, OSError) as error:
                problem = str(error).partition("\n")[0]
            if self.lost_its_port() and self._subject.state in _REFUSING:
                engine = self._subject.facts()
                if engine is not None:
                    send_signal(engine.shim, signal.SIGQUIT)
                return
            if problem != told and self._subject.record.wanted:
                self._subject.tell("front", f"its front ended: {problem}; it is started again")
            lasted = time.monotonic() - begun > STEADY_S
            pause_s, told = (FIRST_PAUSE_S, "") if lasted else (min(2 * pause_s, LONGEST_PAUSE_S), problem)
            await asyncio.sleep(pause_s)

    async def call_when_wanted(self) -> None:
        """Have the server switched to whenever a request is held that wants it, until this is cancelled."""
        while True:
            await self._up.wait()
            try:
                if self._link is None or await self._link.wanted() == 0:
                    continue
            except OSError:
                await asyncio.sleep(WANTED_AGAIN_S)
                continue
            try:
                await self._subject.around.switching.wanted(self._subject.name)
            except GpuboxError as problem:
                self._subject.tell("switch-failed", f"it is wanted, but stays asleep: {problem.message}")

    async def tell(self, state: ServerState | None = None) -> None:
        """Tell it what to do in the state that the server is in, or is about to go to; one that is gone hears nothing.

        It is told again once it is back.
        """
        async with self._telling:
            if self._link is None:
                return
            subject = self._subject
            asleep = state is None and subject.server.sleep is not None
            mode, reason, wakes = self._mode(state or subject.state, asleep=asleep)
            try:
                self.seen = await self._link.set_mode(mode, reason=reason, wakes=wakes)
            except OSError as problem:
                log.warning("%s: %s", self._subject.name, problem)

    async def look(self) -> None:
        """Ask it how it does; where it does other than it should, tell it. Raises OSError where it is not there."""
        if self._link is None:
            raise OSError("its front is not there")
        self.seen = await self._link.state()
        state, asleep = self._subject.state, self._subject.server.sleep is not None
        if state not in _HOLDING and self.seen.mode is not self._mode(state, asleep=asleep)[0]:
            await self.tell()

    async def drain(self, timeout_s: float) -> Drained:
        """Let no more requests in, wait so long for those that run, and cut off what is left then.

        What comes meanwhile is refused or held as the state that follows would have it.
        """
        ends = self._subject.state in (ServerState.DRAINING, ServerState.STOPPING)
        wakes = self._subject.profile.wake_on_request and not ends
        reason = ""
        try:
            if self._link is None:
                return Drained(0, 0, 0.0)
            if ends:
                mode, reason, _ = self._mode(self._subject.state, asleep=False)
                await self._link.set_mode(mode, reason=reason, wakes=False)
            return await self._link.drain(timeout_s, "hold" if wakes else "asleep", reason=reason)
        except OSError as problem:
            log.warning("%s: %s", self._subject.name, problem)
            return Drained(0, 0, 0.0)

    async def end(self) -> None:
        """See that the front of a launch that is over has ended, as it does by itself, and that no socket is left."""
        await self._see_it_end()
        for socket in (self._control_socket, Path(self._subject.record.uds or self._control_socket)):
            socket.unlink(missing_ok=True)

    async def _see_it_end(self) -> None:
        facts = self.facts()
        descriptor = open_pidfd(facts.shim) if facts is not None else None
        if facts is None or descriptor is None:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGQUIT):
                send_signal(facts.shim, number)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ENDS_WITHIN_S):
                        await readable(descriptor)
                        return
            log.warning("the front of %s does not end", self._subject.name)
        finally:
            os.close(descriptor)

    async def _accompany(self, facts: ProcessFacts) -> str:
        """Follow one front to its end, and return how it ended."""
        descriptor = open_pidfd(facts.shim)
        if descriptor is not None:
            ended = asyncio.create_task(readable(descriptor), name=f"front of {self._subject.name}")
            try:
                await self._get_hold(ended)
                await ended
            finally:
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)
                os.close(descriptor)
                self._up.clear()
                self._link, self.seen = None, None
        over = self.facts()
        if over is None or over.exit is None:
            return "it left no word"
        return over.error or how_it_ended(over.exit, oom_killed=False)

    async def _get_hold(self, ended: asyncio.Task[None]) -> None:
        """Wait until it answers, and tell it what to do."""
        link = FrontLink(self._control_socket)
        while not ended.done():
            try:
                self.seen = await link.state()
            except OSError:
                await asyncio.wait({ended}, timeout=LISTENS_LOOK_S)
                continue
            self._link = link
            await self.tell()
            self._up.set()
            return

    def _mode(self, state: ServerState, *, asleep: bool) -> tuple[FrontMode, str, bool]:
        """Return what the front is to do in a state, what it is to say, and whether a request wakes the engine."""
        wakes = self._subject.profile.wake_on_request
        if state in _REFUSING:
            return FrontMode.STARTING, "", wakes
        if state in _HOLDING or (asleep and self.expects):
            return FrontMode.HOLD, "", wakes
        if state is ServerState.SLEEPING or (asleep and state in _PASSING):
            return FrontMode.ASLEEP, "", wakes
        if state in _PASSING:
            return FrontMode.PASS, "", wakes
        return FrontMode.ASLEEP, f"{self._subject.name} is {state}", False

    @property
    def _control_socket(self) -> Path:
        return paths.engine_socket(self.folder, "control")

    def _launch(self) -> None:
        """Start a front and its shim; blocks, raises StartFailedError and OSError."""
        engine = self._subject.facts()
        if engine is None:
            raise OSError("its engine's shim says nothing yet")
        folder, key = paths.private(self.folder), self._subject.api_key()
        paths.private(self._control_socket.parent)
        self._control_socket.unlink(missing_ok=True)
        self._config(engine.shim, has_key=key is not None).write(folder / "config.json")
        launch(self._spec(self._subject.record, key), folder)

    def _config(self, shim: Identity, *, has_key: bool) -> FrontConfig:
        record, profile = self._subject.record, self._subject.profile
        return FrontConfig(
            name=record.name,
            host=profile.host,
            port=record.port,
            engine_socket=Path(record.uds or ""),
            control_socket=self._control_socket,
            engine_shim=shim,
            wakes=profile.wake_on_request,
            api_key_env=KEY if has_key else None,
        )

    def _spec(self, record: Record, key: str | None) -> dict[str, Any]:
        # Not the environment of whoever asked for the server: what it names there is for the engine.
        search = os.pathsep.join([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
        environ = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": search, "PYTHONUNBUFFERED": "1"}
        environ |= {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
        environ |= {KEY: key} if key is not None else {}
        argv = [sys.executable, "-P", "-m", "backends.front", str(self.folder / "config.json")]
        return {
            "schema": 1,
            "name": f"{record.name} (front)",
            "steps": [{"label": "front", "argv": argv}],
            "environ": environ,
            "cwd": str(self.folder),
            "log": str(self.log_path),
            "log_max_bytes": LOG_MAX_BYTES,
            "log_parts": 1,
            "drop_lines_with": SCRAPE_MARK,
            "facts": str(self.folder / "process.json"),
            "progress": str(self.folder / "progress.json"),
            "locks": [str(paths.server_dir(record.name) / "front.lock")],
            "grants": [],
            "term_again_s": ENDS_WITHIN_S,
            "kill_after_s": ENDS_WITHIN_S,
        }
