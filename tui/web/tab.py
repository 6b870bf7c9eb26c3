"""One browser tab: a process of its own with the app in it, which ends with the tab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

PATIENCE_S = (5.0, 3.0, 3.0)
"""So long the app may take to end once its tab is gone, then after SIGTERM, then after SIGKILL."""

OPENABLE = ("http://", "https://")
"""What a page may be asked to open: `javascript:` would run in it."""

NOT_THE_BROWSER = ("TERM_PROGRAM", "TERM_PROGRAM_VERSION", "TMUX", "STY")
"""What the server's own terminal says of itself."""


class Tab(AppService):
    """textual-serve's service of one app, started without a shell, and ended whatever the app does."""

    def __init__(self, arguments: Sequence[str], websocket: web.WebSocketResponse, downloads: DownloadManager) -> None:
        """`arguments` go before the app's name-less command: `--readonly`, `--profile-dir DIR`, `--simulate SPEC`."""
        self._arguments = arguments
        self._websocket = websocket
        self._ending = asyncio.Lock()

        async def close() -> None:
            await websocket.close()

        super().__init__(
            "gpubox",
            write_bytes=self._send_bytes,
            write_str=self._send_text,
            close=close,
            download_manager=downloads,
        )

    async def _send_bytes(self, data: bytes) -> None:
        # A tab that is gone must not stop the reading: the app would wait for ever for its pipe to empty.
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._websocket.send_bytes(data)

    async def _send_text(self, text: str) -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self._websocket.send_str(text)

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if name not in NOT_THE_BROWSER}
        return environ | {
            "TEXTUAL_DRIVER": "tui.web.driver:TabDriver",
            "TEXTUAL_COLOR_SYSTEM": "truecolor",
            "TERM": "xterm-256color",
            "COLUMNS": str(width),
            "ROWS": str(height),
        }

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "tui",
            *self._arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self._build_environment(width, height),
            start_new_session=True,  # Ctrl+C in the server's terminal is the server's to handle
        )
        self._stdin = self._process.stdin
        return self._process

    async def run(self) -> None:
        """Pass on what the app shows until it ends; then its tab says so."""
        try:
            await super().run()
        finally:
            await self.remote_close()

    async def stop(self) -> None:
        """End the app and wait until it has ended; may be called more than once."""
        async with self._ending:
            process, self._process = self._process, None
            if process is None:
                return
            await self._download_manager.cancel_app_downloads(self.app_service_id)
            if process.stdin is not None:
                process.stdin.close()
            for how, patience_s in zip((None, signal.SIGTERM, signal.SIGKILL), PATIENCE_S, strict=True):
                if how is not None and process.returncode is None:
                    # The whole group: what an app that hangs has started for itself goes too. A keeper is in another.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, how)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), patience_s)
                    break
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    async def on_meta(self, data: bytes) -> None:
        """Pass on what the app asks of the browser; it opens web pages only, and never in the app's place."""
        asked = json.loads(data)
        if asked.get("type") == "open_url":
            if not str(asked.get("url")).lower().startswith(OPENABLE):
                return
            data = json.dumps(asked | {"new_tab": True}).encode()
        await super().on_meta(data)
