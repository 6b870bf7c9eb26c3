"""The shim: the small detached supervisor of one engine's process tree; it outlives everything else of gpubox.

Run as `python -I -P -S /abs/shim.py /abs/spec.json`; docs/architecture.md holds its contract. It reads the output and
writes the log and the facts; its guard (guard.py) starts and ends the processes. Standard library only, all of it
imported at the start: an upgrade may replace these files under a running shim.
"""

from __future__ import annotations

import fcntl
import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
import types

if __name__ == "__main__":
    # Isolated mode has no folder of ours on sys.path, and must not get one: our siblings come from beside this file.
    _here = os.path.dirname(os.path.abspath(__file__))
    for _name, _folder in (("backends", os.path.dirname(_here)), ("backends.processes", _here)):
        _package = types.ModuleType(_name)
        _package.__path__ = [_folder]
        sys.modules[_name] = _package

import json

from backends.processes import procfs
from backends.processes.guard import MESSAGE_LIMIT, Guard, drain, kill_tree, wake_on
from backends.processes.lines import LINE_LIMIT, Lines
from backends.processes.locks import hold, take_over
from backends.processes.shm import SharedMemory
from backends.processes.sink import Sink
from backends.processes.spec import SCHEMA, read_spec, write_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from backends.processes.spec import Spec

SHIM_KILLED = "shim was killed"
GUARD_KILLED = "guard was killed"
LOG_CLOSE_S = 5.0
DRAIN_LIMIT_S = 1.0
FACTS_RETRY_S = 1.0
FACTS_TRIES = 10


def identity(pid: int) -> dict[str, int]:
    """Return what tells a process from others that had or will have its pid."""
    return {"pid": pid, "start_ticks": procfs.start_ticks(pid) or 0}


def ending(status: int) -> dict[str, Any]:
    """Return a wait status as an exit code or a signal."""
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}


def say_ending(label: str, end: dict[str, Any], asked: bool) -> str:
    """Return the log's last line."""
    if end["signal"] is None:
        how = f"ended with exit code {end['code']}"
    else:
        try:
            how = f"was ended by {signal.Signals(end['signal']).name}"
        except ValueError:
            how = f"was ended by signal {end['signal']}"
    return f"{label} {how}{' (asked to stop)' if asked else ''}"


class Reader(threading.Thread):
    """Reads one step's output until it ends, or until told that whoever could write is gone."""

    def __init__(self, fd: int, lines: Lines, sink: Sink) -> None:
        super().__init__(name="output", daemon=True)
        os.set_blocking(fd, False)
        self._fd, self._lines, self._sink = fd, lines, sink
        self._last, self._end = os.pipe2(os.O_CLOEXEC)

    def finish(self) -> None:
        """Take in all that was written so far, and end."""
        os.write(self._end, b".")
        self.join()
        for fd in (self._fd, self._last, self._end):
            os.close(fd)

    def run(self) -> None:
        """Read, stamp, queue."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._last, select.POLLIN)
        stop_at: float | None = None
        shown: str | None = None
        while stop_at is None or time.monotonic() < stop_at:
            if stop_at is None:
                due_s = self._lines.due(time.time())
                ready = {fd for fd, _ in poll.poll(None if due_s is None else due_s * 1000)}
                if not ready:
                    self._sink.put(self._lines.settle(time.time()))
                    continue
                if self._last in ready:
                    stop_at = time.monotonic() + DRAIN_LIMIT_S
            try:
                chunk = os.read(self._fd, LINE_LIMIT)
            except BlockingIOError:
                if stop_at is not None:
                    break
                continue
            if not chunk:
                break
            self._sink.put(self._lines.feed(chunk, time.time()))
            if self._lines.progress is not None and self._lines.progress is not shown:
                shown = self._lines.progress
                self._sink.show(shown)
        self._sink.put(self._lines.finish(time.time()))


class Shim:
    """Supervises the launch that a spec describes."""

    def __init__(self, spec: Spec, tell: int) -> None:
        """`tell` is the pipe to the command that started it."""
        self._spec, self._tell = spec, tell
        self._locks = [*map(hold, spec["locks"]), *map(take_over, spec["grants"])]
        self._sink = Sink(spec["log"], spec["log_max_bytes"], spec["log_parts"], spec["progress"])
        self._wake = wake_on(signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGCHLD)
        self._channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in spec["steps"]]
        self._inputs = [reader for reader, _ in pipes]
        self._step = 0
        self._reader: Reader | None = None
        self._unwritten = False
        self.facts: dict[str, Any] = {
            "schema": SCHEMA,
            "boot_id": procfs.boot_id(),
            "shim": identity(os.getpid()),
            "guard": None,
            "engine": None,
            "step": spec["steps"][0]["label"],
            "launched_at": time.time(),
            "phase": "starting",
            "stop_asked_at": None,
            "exit": None,
            "error": None,
            "log": spec["log"],
            "dropped_lines": 0,
        }
        self._guard = os.fork()
        if self._guard == 0:
            for fd in (self._channel.fileno(), tell, self._wake, *self._inputs):
                os.close(fd)
            try:
                procfs.rename("gpubox-guard")
                procfs.become_subreaper()
                Guard(spec, far_end, [writer for _, writer in pipes]).run(self._shim_gone)
            finally:
                os._exit(70)
        far_end.close()
        for _, writer in pipes:
            os.close(writer)
        self.facts["guard"] = identity(self._guard)

    def announce(self) -> bool:
        """Write the first facts and tell whoever started the shim; return whether it still listened."""
        write_json(self._spec["facts"], self.facts)
        self._sink.start()
        try:
            os.write(self._tell, b"ok")
        except BrokenPipeError:
            self._record_end("whoever started the shim was gone before the engine could be started")
            return False
        os.close(self._tell)
        return True

    def run(self) -> None:
        """Run the steps to their end, and record it."""
        self._order(do="run", step=0)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._channel, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(FACTS_RETRY_S * 1000 if self._unwritten else None)}
            signals = drain(self._wake) if self._wake in ready else b""
            if signal.SIGQUIT in signals:
                self._stop("kill")
            elif signal.SIGTERM in signals:
                self._stop("stop")
            if signal.SIGUSR1 in signals:
                self._write()
            if self._channel.fileno() in ready:
                message = self._receive()
                if message is None:
                    self._guard_gone()
                    return
                if self._hear(message):
                    return
            if self._unwritten:
                self._write()

    def _hear(self, message: dict[str, Any]) -> bool:
        """Act on what the guard tells; return whether all is over."""
        step = self._spec["steps"][self._step]
        if "started" in message:
            self._sink.say(
                f"{self._spec['name']}: {step['label']}, pid {message['started']}: {shlex.join(step['argv'])}"
            )
            self._reader = Reader(self._inputs[self._step], Lines(self._spec["drop_lines_with"]), self._sink)
            self._reader.start()
            self.facts["engine"] = {"pid": message["started"], "start_ticks": message["start_ticks"]}
            if self._step == len(self._spec["steps"]) - 1 and self.facts["phase"] == "starting":
                self.facts["phase"] = "running"
            self._write()
        elif "refused" in message:
            self.facts["error"] = f"cannot start {step['label']}: {message['refused']}"
        elif "exited" in message:
            self.facts["exit"] = {"at": time.time(), **ending(message["exited"]), "step": step["label"]}
            self.facts["phase"] = "stopping"
            self._write()
        elif "empty" in message:
            return self._step_over(step["label"])
        return False

    def _step_over(self, label: str) -> bool:
        self._finish_reading()
        end = self.facts["exit"]
        asked = self.facts["stop_asked_at"] is not None
        last = self._step == len(self._spec["steps"]) - 1
        self._sink.say(self.facts["error"] or say_ending(label, end, asked))
        if last or asked or self.facts["error"] or end["code"] != 0:
            self._record_end(self.facts["error"])
            return True
        self._step += 1
        self.facts.update(engine=None, exit=None, phase="starting", step=self._spec["steps"][self._step]["label"])
        self._write()
        self._order(do="run", step=self._step)
        return False

    def _stop(self, how: str) -> None:
        self._order(do=how)
        if self.facts["stop_asked_at"] is None:
            self.facts.update(stop_asked_at=time.time(), phase="stopping")
            self._write()

    def _guard_gone(self) -> None:
        """The guard was killed: the tree is now ours to end."""
        shm = SharedMemory(self.facts["launched_at"])
        shm.look(os.getpid())
        statuses = kill_tree()
        shm.clean()
        engine = self.facts["engine"]
        status = statuses.get(engine["pid"]) if engine else None
        if status is not None and self.facts["exit"] is None:
            self.facts["exit"] = {"at": time.time(), **ending(status), "step": self.facts["step"]}
        self._finish_reading()
        self._sink.say(f"{GUARD_KILLED}: all processes of {self._spec['name']} were ended")
        self._record_end(GUARD_KILLED)

    def _shim_gone(self, status: int | None) -> None:
        """In the guard: the shim was killed, the tree is dead; record that in its stead."""
        with open(self._spec["facts"], "rb") as file:
            facts: dict[str, Any] = json.load(file)
        if facts["phase"] == "exited":
            return
        if status is not None and facts["exit"] is None:
            facts["exit"] = {"at": time.time(), **ending(status), "step": facts["step"]}
        facts.update(phase="exited", error=facts["error"] or SHIM_KILLED)
        sink = Sink(self._spec["log"], self._spec["log_max_bytes"], self._spec["log_parts"], self._spec["progress"])
        sink.start()
        sink.say(f"{SHIM_KILLED}: all processes of {self._spec['name']} were ended")
        sink.close(FACTS_RETRY_S)
        self._unlock()
        write_json(self._spec["facts"], facts)

    def _record_end(self, error: str | None) -> None:
        """Write the last of the log and the facts; let the guard go."""
        self._sink.close(LOG_CLOSE_S)
        self._unlock()
        self.facts.update(phase="exited", error=error)
        for _ in range(FACTS_TRIES):
            self._write()
            if not self._unwritten:
                break
            time.sleep(FACTS_RETRY_S)
        self._order(do="end")
        try:
            os.waitpid(self._guard, 0)
        except ChildProcessError:
            return  # Its end was seen already.

    def _finish_reading(self) -> None:
        if self._reader:
            self._reader.finish()
            self._reader = None

    def _write(self) -> None:
        self.facts["dropped_lines"] = self._sink.dropped_lines
        try:
            write_json(self._spec["facts"], self.facts)
            self._unwritten = False
        except OSError:
            self._unwritten = True

    def _order(self, **message: object) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError:
            return  # The guard is gone; the next poll says so.

    def _receive(self) -> dict[str, Any] | None:
        try:
            data = self._channel.recv(MESSAGE_LIMIT)
        except ConnectionError:
            data = b""
        return json.loads(data) if data else None

    def _unlock(self) -> None:
        """Free the locks, which the shim and the guard hold together."""
        for fd in self._locks:
            fcntl.flock(fd, fcntl.LOCK_UN)


def supervise(spec: Spec, tell: int) -> NoReturn:
    """In the detached process: run the launch; never returns."""
    shim: Shim | None = None
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        os.chdir("/")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        procfs.rename("gpubox-shim")
        procfs.become_subreaper()
        # Half a shim is worse than none: the guard ends the tree and says so.
        threading.excepthook = lambda _: os._exit(70)
        starting = Shim(spec, tell)
        if starting.announce():
            shim = starting
            shim.run()
    except BaseException as error:
        if shim is None:
            os.write(tell, f"cannot start {spec['name']}: {error}".encode("utf-8", "replace"))
        else:
            shim.facts["error"] = f"the shim failed: {error!r}"
            write_json(spec["facts"], shim.facts)
        os._exit(70)
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Detach a shim for the spec named in `arguments`; return 0 once its facts exist."""
    try:
        (path,) = arguments
        spec = read_spec(path)
    except (OSError, ValueError) as error:
        print(f"gpubox shim: {error}", file=sys.stderr)
        return 1
    heard, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        os.close(heard)
        supervise(spec, tell)
    os.close(tell)
    os.waitpid(middle, 0)
    with open(heard, "rb") as pipe:
        answer = pipe.read().decode("utf-8", "replace")
    if answer == "ok":
        return 0
    print(f"gpubox shim: {answer or 'it ended before it could say why'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
