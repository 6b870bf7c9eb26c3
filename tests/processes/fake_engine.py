"""A stand-in for an engine: does what its arguments say, one after another, `name` or `name:argument`.

Standard library only, and quick to start: it is run by the interpreter with -I -S.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

KEPT: list[mmap.mmap] = []


def write(data: bytes, fd: int = 1) -> None:
    while data:
        data = data[os.write(fd, data) :]


def say(text: str) -> None:
    write(f"{text}\n".encode())


def lines(count: str) -> None:
    """Numbered lines, as fast as they can be written."""
    numbers = range(int(count))
    for start in range(0, len(numbers), 1000):
        write(b"".join(b"line %d\n" % number for number in numbers[start : start + 1000]))


def progress(count: str) -> None:
    """A progress bar of `count` states, the last without a line feed."""
    for number in range(1, int(count) + 1):
        write(f"\r{number}/{count}".encode())
        time.sleep(0.01)


def raw(text: str) -> None:
    """Bytes, written with Python's escapes."""
    write(text.encode().decode("unicode_escape").encode("latin-1"))


def both(count: str) -> None:
    """Lines on standard output and standard error in turn."""
    for number in range(int(count)):
        write(f"{number}\n".encode(), 1 + number % 2)


def shm(name: str) -> None:
    """Make a shared-memory file and keep it mapped."""
    fd = os.open(f"/dev/shm/{name}", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 4096)
    KEPT.append(mmap.mmap(fd, 4096))
    os.close(fd)
    say(f"made {name}")


def fork(actions: str) -> None:
    """A child that does the actions, parted by commas, and then waits."""
    if os.fork() == 0:
        run([*actions.split(","), "wait"])
        os._exit(0)


def orphan(actions: str) -> None:
    """A grandchild whose parent is gone, in a session of its own: does the actions and then waits."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            run([*actions.split(","), "wait"])
        os._exit(0)
    os.wait()


def breed(_: str) -> NoReturn:
    """Fork for ever: each process lives on in its child, in a new session, and ends."""
    while True:
        if os.fork() != 0:
            os._exit(0)
        os.setsid()
        time.sleep(0.001)


def await_file(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)


def ignore_term(_: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def tell_term(_: str) -> None:
    """Say so when a SIGTERM comes, and go on."""
    signal.signal(signal.SIGTERM, lambda *_: say(f"TERM to {os.getpid()}"))


def swallow_term(_: str) -> None:
    """Ignore the first SIGTERM, end on the second, as vLLM does while it initialises."""

    def first(*_: object) -> None:
        say("swallowed a TERM")
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))

    signal.signal(signal.SIGTERM, first)


def wait(_: str) -> NoReturn:
    while True:
        signal.pause()


ACTIONS: dict[str, Callable[[str], object]] = {
    "say": say,
    "lines": lines,
    "progress": progress,
    "raw": raw,
    "both": both,
    "long": lambda size: write(b"x" * int(size) + b"\n"),
    "shm": shm,
    "fork": fork,
    "orphan": orphan,
    "breed": breed,
    "setsid": lambda _: os.setsid(),
    "await": await_file,
    "ignore-term": ignore_term,
    "tell-term": tell_term,
    "swallow-term": swallow_term,
    "sleep": lambda seconds: time.sleep(float(seconds)),
    "environ": lambda name: say(f"{name}={os.environ.get(name)}"),
    "cwd": lambda _: say(os.getcwd()),
    "wait": wait,
    "die": lambda number: os.kill(os.getpid(), int(number)),
    "exit": lambda code: os._exit(int(code)),
}


def run(actions: list[str]) -> None:
    for action in actions:
        name, _, argument = action.partition(":")
        ACTIONS[name](argument)


if __name__ == "__main__":
    run(sys.argv[1:])
