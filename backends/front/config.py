"""What a front is told at its start: a small JSON file that the keeper writes, mode 0600, no key in it.

{"schema": 1, "name": "qwen", "host": "127.0.0.1", "port": 8000, "engine_socket": "/…/engine.sock",
 "control_socket": "/…/control.sock", "engine_shim": {"pid": 1, "start_ticks": 2, "boot_id": "…"}, "hold_s": 60,
 "wakes": false, "api_key_env": "VLLM_API_KEY" | null}
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.errors import GpuboxError
from backends.processes.facts import Identity

SCHEMA = 1
HOLD_S = 60.0

PORT_IN_USE = 98
"""The exit code of a front whose port somebody else has; its last line is `[Errno 98] Address already in use: …`."""


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """One front: it listens on `host`:`port` for the engine at `engine_socket`, until `engine_shim` has ended.

    Requests are held for at most `hold_s` seconds, and one whose body stops coming is given up after as long. `wakes`:
    a request for a sleeping engine is held, and waking wanted. `api_key_env` names the variable that holds the engine's
    key; None where it has none.
    """

    name: str
    host: str
    port: int
    engine_socket: Path
    control_socket: Path
    engine_shim: Identity
    hold_s: float = HOLD_S
    wakes: bool = False
    api_key_env: str | None = None

    def write(self, path: Path) -> None:
        """Write the file, mode 0600, whole or not at all; raises OSError."""
        shim = self.engine_shim
        content = {
            "schema": SCHEMA,
            "name": self.name,
            "host": self.host,
            "port": self.port,
            "engine_socket": str(self.engine_socket),
            "control_socket": str(self.control_socket),
            "engine_shim": {"pid": shim.pid, "start_ticks": shim.start_ticks, "boot_id": shim.boot_id},
            "hold_s": self.hold_s,
            "wakes": self.wakes,
            "api_key_env": self.api_key_env,
        }
        draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)


def read_config(path: Path) -> FrontConfig:
    """Read what `FrontConfig.write` wrote; raises GpuboxError where it is absent or makes no sense."""
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        if raw["schema"] != SCHEMA:
            raise ValueError(f"its schema is {raw['schema']}, this gpubox reads {SCHEMA}")
        shim = raw["engine_shim"]
        config = FrontConfig(
            name=str(raw["name"]),
            host=str(raw["host"]),
            port=int(raw["port"]),
            engine_socket=Path(raw["engine_socket"]),
            control_socket=Path(raw["control_socket"]),
            engine_shim=Identity(str(shim["boot_id"]), int(shim["pid"]), int(shim["start_ticks"])),
            hold_s=float(raw.get("hold_s", HOLD_S)),
            wakes=bool(raw.get("wakes", False)),
            api_key_env=raw.get("api_key_env"),
        )
    except OSError as error:
        raise GpuboxError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise GpuboxError(f"{path} is no front's configuration: {error!r}") from error
    # An empty host would mean every address of the machine.
    if not config.host:
        raise GpuboxError(f"{path} names no host")
    return config
