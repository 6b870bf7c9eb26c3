"""Pictures of every screen in every state it can be found in, and of every dialog: narrow, wide, high contrast."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backends.simulation import SimulatedKeeper
from backends.snapshots import Series, Server, ServerState, Snapshot, SnapshotUpdate, Update
from profiles.store import Place, Store
from tests.snapshots.conftest import NOW
from tests.snapshots.test_panels import picture
from tui.app import PANELS, GpuboxApp
from tui.themes import CONTRAST

Compare = Callable[..., bool]
Chosen = Callable[[tuple[Server, ...]], tuple[Server, ...]]

NARROW, WIDE = (80, 24), (200, 50)
PROFILES = Path(__file__).parent / "profiles"
MODES = {mode: str(number) for number, mode in enumerate(PANELS, start=1)}


class StillKeeper(SimulatedKeeper):
    """A simulated box that stays as it is, with the servers that are chosen, or copies of them."""

    def __init__(self, choose: Chosen, folder: Path) -> None:
        super().__init__("8xH200", clock=lambda: NOW, folder=folder)
        self._choose_servers = choose

    def snapshot(self) -> Snapshot:
        whole = super().snapshot()
        return replace(whole, servers=self._choose_servers(whole.servers))

    async def updates(self) -> AsyncIterator[Update]:
        await self._advance()
        yield SnapshotUpdate(self.snapshot())
        await asyncio.Event().wait()

    async def server_series(self, name: str) -> Series:
        return await super().server_series(name.partition("_")[0])

    async def profile(self, name: str) -> dict[str, Any]:
        return await super().profile(name.partition("_")[0])


def nobody(servers: tuple[Server, ...]) -> tuple[Server, ...]:
    return ()


def of_state(state: ServerState, servers: tuple[Server, ...]) -> tuple[Server, ...]:
    return tuple(server for server in servers if server.state is state)[:1]


def ten(servers: tuple[Server, ...]) -> tuple[Server, ...]:
    copies = [
        replace(server, name=f"{server.name}_{n}", port=server.port + 10 * n) for n in (1, 2) for server in servers
    ]
    return (*servers, *copies)[:10]


STATES: dict[str, Chosen] = {
    "empty": nobody,
    "one": partial(of_state, ServerState.READY),
    "starting": partial(of_state, ServerState.STARTING),
    "failed": partial(of_state, ServerState.FAILED),
    "ten": ten,
}

DIALOGS: dict[str, tuple[str, ...]] = {
    "events": ("e",),
    "explain": ("5", "i"),
    "keys-of-logs": ("3", "question_mark"),
    "use": ("2", "u"),
    "fix": ("2", "down", "down", "down", "down", "f"),
    "level": ("3", "v", "v"),
    "processes": ("3", "p"),
    "time": ("3", "at"),
    "search": ("3", "slash", *"prompt", "enter"),
    "settings": ("4", "escape", "o"),
    "compare": ("4", "escape", "c"),
    "large-chart": ("5", "enter"),
    "edit": ("7", "down", "down", "o", "end", *" #"),
    "edit-a-broken-one": ("7", "o"),
    "new-profile": ("7", "n"),
    "import": ("7", "p"),
    "diff": ("7", "v"),
    "switcher": ("2", "S"),
    "asleep": ("2", "down", "down", "down"),
}


@pytest.fixture
def still(tmp_path: Path) -> Callable[[Chosen], GpuboxApp]:
    def make(choose: Chosen) -> GpuboxApp:
        profiles = Store([Place("library", Path(shutil.copytree(PROFILES, tmp_path / "library")))])
        link = StillKeeper(choose, tmp_path / "logs")
        return GpuboxApp(link, store=profiles, simulated=True, clock=lambda: NOW)

    return make


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("mode", MODES)
def test_screen(snap_compare: Compare, still: Callable[[Chosen], GpuboxApp], mode: str, state: str) -> None:
    assert picture(snap_compare, still(STATES[state]), NARROW, MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_wide_screen(snap_compare: Compare, still: Callable[[Chosen], GpuboxApp], mode: str) -> None:
    assert picture(snap_compare, still(ten), WIDE, MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_high_contrast(snap_compare: Compare, still: Callable[[Chosen], GpuboxApp], mode: str) -> None:
    app = still(ten)
    app.theme = CONTRAST.name
    assert picture(snap_compare, app, (120, 40), MODES[mode])


@pytest.mark.parametrize("keys", DIALOGS.values(), ids=DIALOGS.keys())
def test_dialog(
    snap_compare: Compare, pictured: Callable[..., GpuboxApp], tmp_path: Path, keys: tuple[str, ...]
) -> None:
    app = pictured()
    library = Path(shutil.copytree(PROFILES, tmp_path / "library"))
    app.store = Store([Place("user", tmp_path / "profiles"), Place("library", library)])
    assert picture(snap_compare, app, NARROW, *keys)
