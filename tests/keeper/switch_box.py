"""A box with GPUs of the NVML stub and engines that sleep, for the tests of switches."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends import paths
from backends.client import ensure_keeper
from backends.errors import KeeperError
from backends.records import Records
from backends.snapshots import Event, Server, ServerState, StartRequest, SwitchRequest
from backends.switch_records import SwitchRecord, switches
from backends.switches import Switch, SwitchChoice
from tests.gpu.conftest import NvmlStub, StubGpu
from tests.keeper.conftest import PATIENCE_S, Box, box_in, fake_profile, kill_and_wait

GIB = 1 << 30
GPU_BYTES = 60 * GIB


class SwitchBox(Box):
    """A box, and what the tests of switches ask of it."""

    stub: NvmlStub

    def model(self, weights_bytes: int = 1 << 20) -> str:
        """Return a folder with weights of that size, which take no room on the disk."""
        folder = self.home / f"model-{weights_bytes}"
        folder.mkdir(exist_ok=True)
        with (folder / "model.safetensors").open("wb") as file:
            file.truncate(weights_bytes)
        return str(folder)

    def sleepy(
        self, name: str, *, weights_bytes: int = 1 << 20, more: dict[str, Any] | None = None, **args: object
    ) -> Any:
        """Return a profile whose engine sleeps, and takes half of a GPU and more."""
        args = {"gpu_bytes": GPU_BYTES, "asleep_bytes": GIB} | args
        profile = fake_profile(name, **args) | {"served_name": name, "model": self.model(weights_bytes)}
        profile |= {"gpus": 1, "sleep": True} | (more or {})
        profile["args"]["gpu_memory_utilization"] = 0.6
        return profile

    def ask(self, name: str, text: str = "hello", timeout_s: float = 60.0, **more: object) -> str:
        """Chat with a server through its front."""
        body = {"model": name, "messages": [{"role": "user", "content": text}], **more}
        request = urllib.request.Request(
            f"{self.server(name).address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            told: dict[str, Any] = json.loads(answer.read())
        content: str = told["choices"][0]["message"]["content"]
        return content

    def engine_environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "GPUBOX_NVML_STUB": str(self.stub.scenario)}

    def start_one(self, profile: dict[str, Any], **wishes: Any) -> Server:
        self.start(profile, self.engine_environ(), **wishes)
        return self.until(ServerState.READY, profile["name"])

    def switch(self, profile: dict[str, Any] | str, **wishes: Any) -> SwitchRecord:
        """Switch to a server, started by its profile where that is given, and return how it ended."""
        return self.over(self.begin_switch(profile, **wishes))

    def begin_switch(self, profile: dict[str, Any] | str, **wishes: Any) -> Switch:
        ensure_keeper(self.client)
        if isinstance(profile, str):
            return self.client.switch(SwitchRequest(profile, **wishes))
        start = StartRequest(profile, self.engine_environ(), gpus=wishes.pop("gpus", None))
        return self.client.switch(SwitchRequest(profile["name"], start, **wishes))

    def over(self, switch: Switch, within_s: float = PATIENCE_S) -> SwitchRecord:
        """Return how a switch ended, by its record."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            with contextlib.suppress(KeeperError):
                if not any(one.id == switch.id for one in self.client.snapshot().switches):
                    for record in switches(Records(paths.records_path())):
                        if record.id == switch.id:
                            return record
            time.sleep(0.02)
        raise AssertionError(f"{switch} is never over: {self.client.snapshot()}")

    def during(self, switch: Switch, reached: Callable[[Switch], bool]) -> bool:
        """Wait until a switch is such; False where it is over before."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            now = next((one for one in self.client.snapshot().switches if one.id == switch.id), None)
            if now is None or reached(now):
                return now is not None
        raise AssertionError(f"{switch} never got there")

    def hears(self, kind: str, name: str) -> None:
        """Wait until something of this kind is told of a server."""
        deadline = time.monotonic() + PATIENCE_S
        while not any((event.kind, event.server) == (kind, name) for event in self.client.history()):
            assert time.monotonic() < deadline, f"{kind} is never told of {name}: {self.client.history()}"
            time.sleep(0.02)

    def until_told(self, kind: str, server: str) -> list[Event]:
        """Wait until events of a kind are told of a server, and return them."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if told := [one for one in self.client.history() if (one.kind, one.server) == (kind, server)]:
                return told
            time.sleep(0.02)
        raise AssertionError(f"{kind} is never told of {server}")

    def kill_keeper(self) -> None:
        """Kill the keeper, and start another."""
        keeper = self.client.snapshot().keeper
        assert keeper is not None
        kill_and_wait(keeper.pid)
        ensure_keeper(self.client)

    def choice(self, name: str) -> SwitchChoice:
        return next(one for one in self.client.switch_choices() if one.server == name)

    def set_most_sleeping(self, text: str | None) -> None:
        path = paths.private(paths.config_dir()) / "config.toml"
        path.write_text(f'[box]\nmax_sleeping_host_memory = "{text}"\n' if text is not None else "")

    def states(self, *names: str) -> list[ServerState]:
        return [self.server(name).state for name in names]


@contextlib.contextmanager
def switch_box_in(home: Path, library: Path, gpus: int = 1) -> Iterator[SwitchBox]:
    home.mkdir(exist_ok=True)
    stub = NvmlStub(library, home / "nvml.ini")
    stub.show([StubGpu()] * gpus)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LD_LIBRARY_PATH", "GPUBOX_NVML_STUB"):
            patch.setenv(name, stub.environ()[name])
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with box_in(home, SwitchBox) as box:
            assert isinstance(box, SwitchBox)
            box.stub = stub
            yield box
