"""Parts of the keeper that need no process: the state table, the broadcast, ports, the engine's environment."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from backends.engines.base import Plan
from backends.errors import ConflictError, GpuboxError, NoSuchGpuError, from_code
from backends.keeper.events import Hub
from backends.keeper.launching import engine_environ
from backends.keeper.ports import choose_port
from backends.keeper.states import TRANSITIONS, check
from backends.snapshots import (
    Box,
    BoxUpdate,
    Event,
    EventUpdate,
    Host,
    Server,
    ServerState,
    ServerUpdate,
    Update,
    dump,
)
from backends.wire import read_as
from profiles.schema import parse_profile
from tests.unit.test_handover import SERVER

BOX = Box(1.0, Host("h", 2, 0.5, 0.1, 2, 1), (), "none")


def test_every_state_has_a_way_out_and_only_known_ones() -> None:
    assert set(TRANSITIONS) == set(ServerState)
    assert all(targets for targets in TRANSITIONS.values())
    check(ServerState.STARTING, ServerState.READY)
    with pytest.raises(AssertionError, match="illegal transition stopped → ready"):
        check(ServerState.STOPPED, ServerState.READY)


async def test_a_slow_listener_gets_the_newest_states_and_every_event() -> None:
    hub = Hub()
    with hub.subscribe() as subscription:
        for port in (1, 2, 3):
            hub.publish(ServerUpdate(replace(SERVER, port=port)))
            hub.publish(EventUpdate(Event(0.0, "qwen", "ready", str(port))))
            hub.publish(BoxUpdate(replace(BOX, at=float(port))))
        batch = await anext(aiter(subscription.batches()))
    servers = [update.server.port for update in batch if isinstance(update, ServerUpdate)]
    assert servers == [3]
    assert [update.event.text for update in batch if isinstance(update, EventUpdate)] == ["1", "2", "3"]
    assert [update.box.at for update in batch if isinstance(update, BoxUpdate)] == [3.0]
    assert [event.text for event in hub.history] == ["1", "2", "3"]
    assert hub.listeners == 0


async def test_a_listener_waits_for_news() -> None:
    hub = Hub()
    with hub.subscribe() as subscription:
        waiting = asyncio.ensure_future(anext(aiter(subscription.batches())))
        await asyncio.sleep(0)
        assert not waiting.done()
        hub.publish(BoxUpdate(BOX))
        assert await waiting == [BoxUpdate(BOX)]


def test_updates_survive_the_wire() -> None:
    update: Update = ServerUpdate(SERVER)
    again = read_as(Update, dump(update, Update))
    assert isinstance(again, ServerUpdate)
    assert isinstance(again.server, Server)
    assert again == update


def test_errors_survive_the_wire() -> None:
    again = from_code(NoSuchGpuError.code, "there is no GPU 9", "look")
    assert isinstance(again, NoSuchGpuError)
    assert (again.exit_code, again.message, again.hint) == (4, "there is no GPU 9", "look")
    assert type(from_code("from-the-future", "x")) is GpuboxError


def test_ports_that_others_hold_are_not_chosen() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port} on 127.0.0.1 is in use by pid"):
            choose_port("127.0.0.1", port, ())
    first = choose_port("127.0.0.1", None, ())
    assert choose_port("127.0.0.1", None, {first}) > first
    with pytest.raises(ConflictError, match="in use"):
        choose_port("127.0.0.1", first, {first})


def test_the_engine_sees_its_gpus_and_what_the_profile_says() -> None:
    profile = parse_profile({"name": "x", "model": "a/b", "env": {"NCCL_DEBUG": "INFO"}}, "test")
    asked_in = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "NCCL_DEBUG": "WARN", "GPUBOX_HOME": "/x"}
    environ = engine_environ(asked_in, Plan((), {"HF_ENDPOINT": "https://m"}), profile, {"HF_TOKEN": "t"}, (2, 3))
    assert environ == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "HF_ENDPOINT": "https://m",
        "NCCL_DEBUG": "INFO",
        "HF_TOKEN": "t",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "2,3",
    }
