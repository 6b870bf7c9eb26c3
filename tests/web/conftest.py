"""`gpubox web` as a user runs it: a process with pipes, and a browser's part played by aiohttp's client."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.keeper.conftest import Box, box_in, free_port

PATIENCE_S = 30.0


class Web:
    """A running `gpubox web`."""

    def __init__(self, box: Box, *before: str, port: int | None = None) -> None:
        self.port = port or free_port()
        command = (*before, "web", "--port", str(self.port))
        self.process = box.spawn(*command, stdin=subprocess.PIPE)
        self._links: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._links.put(line.strip())

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def link(self) -> str:
        """Return the next link that it prints."""
        link = self._links.get(timeout=PATIENCE_S)
        assert link.startswith(f"{self.base}/enter?token="), link
        return link

    def new_link(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.link()

    def tabs(self) -> list[psutil.Process]:
        """Return the processes of the tabs that are open."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
                if "tui" in child.cmdline():
                    found.append(child)
        return found

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def web_box(tmp_path: Path) -> Iterator[Box]:
    with box_in(tmp_path) as box:
        yield box


@pytest.fixture
def open_web(web_box: Box) -> Callable[..., Web]:
    def open_it(*before: str, port: int | None = None) -> Web:
        return Web(web_box, *before, port=port)

    return open_it


def token_of(link: str) -> str:
    return urlsplit(link).query.removeprefix("token=")


def keys(text: str) -> str:
    return json.dumps(["stdin", text])
