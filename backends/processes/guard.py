"""The guard: direct parent of the engine and keeper of its whole process tree, down to the last descendant.

Forked from the shim before any thread. It touches no disk, so that stopping never waits for one; only when the shim is
gone does it write the facts itself. It speaks with the shim in JSON messages over a socket whose end of file also tells
each that the other is gone:

- shim → guard: `{"do": "run", "step": int}`, `{"do": "stop"}`, `{"do": "kill"}`, `{"do": "end"}`
- guard → shim: `{"started": pid, "start_ticks": int}`, `{"refused": str}`, `{"exited": wait status}`, `{"empty": true}`
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time

from backends.processes import procfs
from backends.processes.shm import SharedMemory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from backends.processes.spec import Spec

GRACE_S = 0.5
"""How long the engine's descendants may outlive its main process: time for multiprocessing's tracker to tidy up."""
SHM_SETTLE_S = 0.5
SHM_EVERY_S = 5.0
MESSAGE_LIMIT = 65536


def wake_on(*numbers: int) -> int:
    """Make the given signals wake a poll instead of acting; return the descriptor to read their numbers from."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def drain(fd: int) -> bytes:
    """Read what a non-blocking descriptor has."""
    try:
        return os.read(fd, MESSAGE_LIMIT)
    except BlockingIOError:
        return b""


def kill_tree() -> dict[int, int]:
    """Kill all descendants of this process until none is left; return the wait statuses by pid."""
    statuses: dict[int, int] = {}
    pause_s = 0.005
    while procfs.reap(statuses):
        procfs.kill_descendants(os.getpid())
        time.sleep(pause_s)
        # A process in uninterruptible sleep (a hung driver) dies when it dies; do not burn a core meanwhile.
        pause_s = min(1.0, pause_s * 2)
    return statuses


class Guard:
    """Runs one step at a time and tells the shim of it; ends the tree when asked, or when the shim is gone."""

    def __init__(self, spec: Spec, channel: socket.socket, outputs: list[int]) -> None:
        """`outputs` are the writing ends of the steps' pipes."""
        self._spec, self._channel, self._outputs = spec, channel, outputs
        self._shm = SharedMemory(time.time())
        self._shm_looked = 0.0
        self._shm_at: float | None = None
        self._main: int | None = None
        self._main_ticks = 0
        self._running = False
        self._main_status: int | None = None
        self._killing = False
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self._pause_s = 0.005

    def run(self, alone: Callable[[int | None], None]) -> NoReturn:
        """Serve the shim to its end; if it is killed, end the tree, then call `alone` with the main's status."""
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        wake = wake_on(signal.SIGCHLD)
        poll = select.poll()
        for fd in (wake, self._channel.fileno(), self._shm.fd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        while True:
            timeout_s = self._timeout()
            ready = {fd for fd, _ in poll.poll(None if timeout_s is None else timeout_s * 1000)}
            drain(wake)
            if self._shm.fd in ready and self._shm.made() and self._shm_at is None:
                self._shm_at = max(time.monotonic() + SHM_SETTLE_S, self._shm_looked + SHM_EVERY_S)
            self._reap()
            if self._channel.fileno() in ready:
                message = self._receive()
                if message is None:
                    self._finish_alone(alone)
                elif message["do"] == "end":
                    os._exit(0)
                else:
                    self._obey(message)
            self._act_on_time()

    def _receive(self) -> dict[str, Any] | None:
        try:
            data = self._channel.recv(MESSAGE_LIMIT)
        except ConnectionError:
            data = b""
        return json.loads(data) if data else None

    def _tell(self, **message: object) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            return  # The shim is gone; the next poll says so.

    def _obey(self, message: dict[str, Any]) -> None:
        if message["do"] == "run":
            self._start(message["step"])
        elif message["do"] == "stop" and self._running and self._kill_at is None:
            self._look()
            now = time.monotonic()
            self._term_at, self._kill_at = now, now + self._spec["kill_after_s"]
        elif message["do"] == "kill" and self._running:
            self._kill()

    def _timeout(self) -> float | None:
        if self._killing:
            return self._pause_s
        times = [at for at in (self._term_at, self._kill_at, self._shm_at) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _act_on_time(self) -> None:
        now = time.monotonic()
        if self._shm_at is not None and now >= self._shm_at:
            self._look()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill()
        elif self._term_at is not None and now >= self._term_at and self._main is not None:
            procfs.send(self._main, self._main_ticks, signal.SIGTERM)
            self._term_at = now + self._spec["term_again_s"]
        if self._killing:
            procfs.kill_descendants(os.getpid())
            self._pause_s = min(1.0, self._pause_s * 2)

    def _kill(self) -> None:
        if not self._killing:
            self._look()
        self._killing, self._pause_s = True, 0.005
        self._term_at = self._kill_at = None

    def _look(self) -> None:
        self._shm_at, self._shm_looked = None, time.monotonic()
        self._shm.look(os.getpid())

    def _start(self, step: int) -> None:
        output = self._outputs[step]
        argv = self._spec["steps"][step]["argv"]
        failure, tell_failure = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            self._become(argv, output, tell_failure)
        os.close(tell_failure)
        os.close(output)
        with open(failure, "rb") as pipe:
            why = pipe.read().decode("utf-8", "replace")
        self._main, self._running, self._main_status = pid, True, None
        self._main_ticks = procfs.start_ticks(pid) or 0
        if why:
            self._tell(refused=why)
        else:
            self._tell(started=pid, start_ticks=self._main_ticks)

    def _become(self, argv: list[str], output: int, tell_failure: int) -> NoReturn:
        """In the forked child: turn into the program, or tell why not."""
        try:
            guard = os.getppid()
            procfs.die_with_parent()
            if os.getppid() != guard:
                os._exit(1)
            os.setsid()
            for number in (
                signal.SIGHUP,
                signal.SIGINT,
                signal.SIGPIPE,
                signal.SIGTERM,
                signal.SIGQUIT,
                signal.SIGXFSZ,
            ):
                signal.signal(number, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self._spec["cwd"])
            os.execvpe(argv[0], argv, self._spec["environ"])
        except BaseException as error:
            reason = (isinstance(error, OSError) and error.strerror) or repr(error)
            where = getattr(error, "filename", None)
            at_fault = self._spec["cwd"] if where == self._spec["cwd"] else argv[0]
            os.write(tell_failure, f"{at_fault}: {reason}".encode("utf-8", "replace"))
        finally:
            os._exit(127)

    def _reap(self) -> None:
        statuses: dict[int, int] = {}
        left = procfs.reap(statuses)
        if self._main in statuses:
            self._main_status = statuses[self._main]
            self._main = self._term_at = None
            self._tell(exited=self._main_status)
            if left and not self._killing:
                self._look()
                self._kill_at = time.monotonic() + GRACE_S
        if self._running and self._main is None and not left:
            self._shm.clean()
            self._running = self._killing = False
            self._term_at = self._kill_at = None
            self._tell(empty=True)

    def _finish_alone(self, alone: Callable[[int | None], None]) -> NoReturn:
        self._shm.look(os.getpid())
        statuses = kill_tree()
        if self._main is not None:
            self._main_status = statuses.get(self._main)
        self._shm.clean()
        alone(self._main_status)
        os._exit(0)
