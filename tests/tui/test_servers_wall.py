"""The servers screen with more to show: columns by width, a wall by size, many servers, profiles that have changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot

from backends.snapshots import Server, ServerState, ServerUpdate, Snapshot
from profiles.store import Store, digest_of
from tests.tui.conftest import PROFILES
from tests.tui.link import NOW, FakeLink, shown, simulated, until
from tui.app import GpuboxApp
from tui.explain import EXPLANATIONS
from tui.format import NOTHING, coarse
from tui.screens.base import GpuboxScreen
from tui.screens.servers import ServersScreen
from tui.themes import Palette
from tui.widgets.live_table import GAP
from tui.widgets.server_log import ServerLogTail
from tui.widgets.server_strip import ServerStrip, strip_text
from tui.widgets.server_table import FIXED, layout, uptime

PLAIN = Palette(*["#000000"] * 10)


async def opened(pilot: Pilot[None]) -> None:
    await pilot.press("2")
    await until(pilot, lambda: "x Stop" in shown(pilot), "the servers")


def row(pilot: Pilot[None], name: str) -> str:
    return next(line for line in shown(pilot).splitlines()[1:] if line.strip().startswith(name))


def many(count: int) -> Snapshot:
    snapshot = simulated()
    first = snapshot.servers[0]
    return replace(
        snapshot,
        servers=tuple(replace(first, name=f"server-{number:02}", port=8000 + number) for number in range(count)),
    )


@pytest.mark.parametrize("width", [78, 103, 104, 124, 144, 156, 172, 198])
def test_columns_fill_the_width_and_never_more(width: int) -> None:
    sizes = layout(width, simulated().servers)
    parts = (sizes.name, sizes.state, sizes.model, sizes.engine, sizes.port, sizes.context, sizes.profile)
    columns = 5 + sum(1 for part in parts if part)
    assert sum(parts) + FIXED + GAP * (columns - 1) == width


async def test_a_wide_table_has_all_columns() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(200, 50)) as pilot:
        await opened(pilot)
        heads = next(line for line in shown(pilot).splitlines() if "State" in line).split()
        assert heads == [
            *("Server", "State", "Model", "Engine", "GPUs", "Port", "Context", "KV", "tok/s", "Reqs", "Up", "Profile"),
        ]
        cells = row(pilot, "llama-3.3-70b").split()
        assert cells[1:4] == ["●", "ready", "meta-llama/Llama-3.3-70B-Instruct"]
        assert cells[4:9] == ["vllm", "0.26.0", "0-1", "8000", "8,192"]


@pytest.mark.parametrize(("count", "size"), [(10, (80, 24)), (64, (80, 24)), (64, (200, 50)), (1, (160, 40))])
async def test_ten_and_sixty_four_servers_can_all_be_reached(count: int, size: tuple[int, int]) -> None:
    app = GpuboxApp(FakeLink(many(count)), clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        assert f"Servers · {count} live" in shown(pilot)
        await pilot.press("ctrl+end")
        last = f"server-{count - 1:02}"
        await until(pilot, lambda: app.selected == last, "the last one")
        await until(pilot, lambda: last in shown(pilot), "its row")
        assert all(len(line) <= size[0] for line in shown(pilot).splitlines())


async def test_a_wall_shows_log_and_figures_of_the_selected_server(tmp_path: Path) -> None:
    link = FakeLink()
    path = tmp_path / "m.log"
    path.write_text("2026-11-21T12:34:56.789+00:00 hello from the engine\n")
    first = replace(link.state.servers[0], log_path=str(path))
    link.show(first, *link.state.servers[1:])
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(160, 40)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "12:34:56.789 hello from the engine" in shown(pilot), "the log")
        assert "tok/s out" in shown(pilot)
        assert ("server_series", first.name) in link.asked
        with path.open("a") as file:
            own = "(APIServer pid=7) INFO 11-21 12:35:00 [api_utils.py:345] "
            file.write(f"2026-11-21T12:35:00.000+00:00 {own}one more line\n")
        await until(pilot, lambda: "12:35:00.000 APIServer one more line" in shown(pilot), "the new line")
        await pilot.press("down")
        await until(pilot, lambda: "no figures: the server is not ready" in shown(pilot), "another server")
        assert "hello from the engine" not in shown(pilot)


@pytest.mark.parametrize("size", [(80, 24), (159, 50), (200, 39)])
async def test_what_is_not_shown_reads_nothing(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    from tui.widgets import server_log

    reads: list[Path] = []

    def noted(path: Path, *_: object) -> tuple[None, None]:
        reads.append(path)
        return None, None

    monkeypatch.setattr(server_log, "_newest", noted)
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=size) as pilot:
        await opened(pilot)
        screen = app.screen
        screen.query_one(ServerLogTail)._look()
        assert isinstance(screen, ServersScreen)
        screen._read_history()
        await pilot.pause(0.1)
        assert reads == []
        assert not [one for one in link.asked if one[0] == "server_series"]
        assert screen.query_one(ServerStrip).server is None


async def test_a_wall_that_becomes_small_reads_no_more(tmp_path: Path) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW)
    async with app.run_test(size=(160, 40)) as pilot:
        await opened(pilot)
        await until(pilot, lambda: "tok/s out" in shown(pilot), "the figures")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: app.screen.query_one(ServerStrip).server is None, "their end")
        assert app.screen.query_one(ServerLogTail)._path is None
        assert "tok/s out" not in shown(pilot).replace("tok/s out, ", "")


def with_digest(link: FakeLink, profile: str, digest: str | None) -> Server:
    server = replace(link.state.servers[0], profile=profile, profile_digest=digest)
    link.state = replace(link.state, servers=(server, *link.state.servers[1:]))
    return server


async def test_a_profile_that_was_edited_since_is_marked_with_a_sign_and_words(store: Store) -> None:
    link = FakeLink()
    server = with_digest(link, "pair", digest_of(PROFILES["pair"]))
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        screen = app.screen
        assert isinstance(screen, ServersScreen)
        await until(pilot, lambda: bool(screen._digests), "a look at the files")
        assert "≠" not in shown(pilot)
        path, _ = store.find("pair")
        path.write_text(PROFILES["pair"] + "max_model_len = 4096\n")
        screen._compare()
        await until(pilot, lambda: "≠" in row(pilot, server.name), "the mark")
        assert "profile changed since start: to take it up, stop it and start pair" in shown(pilot)
        assert screen.explained()[0] == "profile_changed"
        path.write_text(PROFILES["pair"])
        screen._compare()
        await until(pilot, lambda: "≠" not in shown(pilot), "the mark's end")
        link.say(ServerUpdate(replace(server, state=ServerState.STOPPED)))
        path.write_text(PROFILES["pair"] + "max_model_len = 4096\n")
        await until(pilot, lambda: "stopped" in row(pilot, server.name), "its end")
        screen._compare()
        await pilot.pause(0.1)
        assert "≠" not in shown(pilot)


@pytest.mark.parametrize(("profile", "digest"), [("pair", None), ("no-such-profile", "0" * 64)])
async def test_what_cannot_be_compared_is_not_called_changed(store: Store, profile: str, digest: str | None) -> None:
    link = FakeLink()
    with_digest(link, profile, digest)
    app = GpuboxApp(link, store=store, clock=lambda: NOW)
    async with app.run_test(size=(200, 50)) as pilot:
        await opened(pilot)
        screen = app.screen
        assert isinstance(screen, ServersScreen)
        screen._compare()
        await pilot.pause(0.2)
        assert "≠" not in shown(pilot)


def state_of(app: GpuboxApp, name: str) -> ServerState | None:
    server = app.named(name)
    return server.state if server is not None else None


async def test_each_state_of_a_server_has_its_explanations() -> None:
    link = FakeLink()
    app = GpuboxApp(link, clock=lambda: NOW)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot)
        screen = app.screen
        assert isinstance(screen, GpuboxScreen)
        first = link.state.servers[0]
        for state in ServerState:
            link.say(ServerUpdate(replace(first, state=state)))
            await until(pilot, lambda wanted=state: state_of(app, first.name) is wanted, state.value)  # type: ignore[misc]
            assert not set(screen.explained()) - EXPLANATIONS.keys()
        link.say(ServerUpdate(replace(first, state=ServerState.STARTING)))
        await until(pilot, lambda: screen.explained()[:2] == ("stage", "eta"), "a start's figures")


def test_figures_that_an_engine_does_not_tell_are_no_zeros() -> None:
    server = simulated().servers[2]
    assert strip_text(server, None, 100, 5, PLAIN).plain == "no figures: the server is not ready"


def test_a_start_has_no_time_up_which_begins_when_it_is_ready() -> None:
    started = replace(simulated().servers[0], launched_at=NOW - 90, ready_at=None, state=ServerState.STARTING)
    assert uptime(started, NOW) == NOTHING
    assert uptime(replace(started, state=ServerState.READY, ready_at=NOW - 61), NOW) == "1 min"


def test_short_names_leave_the_servers_heading_whole() -> None:
    assert layout(200, [replace(simulated().servers[0], name="a")]).name >= len("Server")
    assert layout(200, []).name >= len("Server")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "<1 min"), (59, "<1 min"), (60, "1 min"), (3599, "59 min"), (3600, "1h 00m")]
)
def test_uptime_changes_once_a_minute(seconds: float, said: str) -> None:
    assert coarse(seconds) == said
