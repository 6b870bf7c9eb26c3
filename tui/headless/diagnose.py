"""`gpubox diagnose`: why a log's server failed; of any vLLM log, one that gpubox never saw included."""

from __future__ import annotations

import json as jsonlib
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import paths
from backends.client import KeeperClient
from backends.errors import GpuboxError, NoSuchServerError
from backends.processes.logs import log_starts
from backends.snapshots import Missing, Server
from backends.starts import Card
from tui.headless.output import say

if TYPE_CHECKING:
    from backends.diagnosis.card import Diagnosis

WIDEST = 100
FRAMES = 3


def diagnose(target: str, *, json: bool) -> int:
    """Print the card of a log file, or of the newest log of the server of that name.

    Raises NoSuchServerError where it is neither, GpuboxError where the log cannot be read.
    """
    from backends.diagnosis.card import examine

    path = Path(target).expanduser()
    server: Server | None = None
    profile: dict[str, Any] | None = None
    known: dict[str, Any] = {}
    if not path.is_file():
        server, profile, known = _known_of(target)
        path = _log_of(target, server)
    end = server.exit if server is not None else None
    try:
        found = examine(path, None if end is None or end.asked else end, profile, **known)
    except OSError as problem:
        raise GpuboxError(f"{path} cannot be read: {problem.strerror}") from None
    if json:
        print(jsonlib.dumps(as_json(found.card), indent=2, ensure_ascii=False))
        return 0
    width = min(shutil.get_terminal_size().columns, WIDEST)
    print("\n".join(lines(found, width, server.name if server else None)))
    return 0


def as_json(card: Card) -> dict[str, Any]:
    """Return a card as it is printed for programs."""
    evidence = card.evidence
    return {
        "cause": card.cause,
        "summary": card.summary,
        "evidence": {"line": evidence.line, "text": evidence.text} if evidence else None,
        "remedies": [{"text": remedy.text, "set": remedy.set} for remedy in card.remedies],
        "frames": list(card.frames),
    }


def lines(found: Diagnosis, width: int, server: str | None) -> list[str]:
    """Return a card as text of at most `width` cells a line, long words aside."""
    card = found.card
    text = textwrap.wrap(f"{card.cause}: {card.summary}", width)
    if card.evidence is not None:
        text += ["", f"{found.file}:{card.evidence.line}"]
        text += textwrap.wrap(card.evidence.text, width, initial_indent="  ", subsequent_indent="  ", max_lines=4)
        text += [f"  at {frame}" for frame in reversed(card.frames[-FRAMES:])]
    if card.remedies:
        text.append("")
    for number, remedy in enumerate(card.remedies, 1):
        text += textwrap.wrap(remedy.text, width, initial_indent=f"{number}. ", subsequent_indent="   ")
        text += [f"     {key} = {setting(value)}" for key, value in remedy.set.items()]
    if server is not None and any(remedy.set for remedy in card.remedies):
        text += ["", f"gpubox fix {server} shows the change, gpubox fix {server} --apply makes it and starts again"]
    return text


def setting(value: object) -> str:
    """Return a value of a profile as people read it."""
    return "(removed)" if value is None else jsonlib.dumps(value, ensure_ascii=False)


def _known_of(name: str) -> tuple[Server | None, dict[str, Any] | None, dict[str, Any]]:
    """Return what is on record of a server: its end, its profile, and the box; nothing where no keeper runs."""
    client = KeeperClient()
    if not client.is_up():
        return _on_record(name)
    try:
        snapshot = client.snapshot()
        server = next((one for one in snapshot.servers if one.name == name), None)
        profile = client.profile(name) if server is not None and server.foreign is None else None
    except GpuboxError as problem:
        say(f"gpubox: {problem.message}; the log alone is asked")
        return None, None, {}
    known: dict[str, Any] = {"port": server.port} if server else {}
    if snapshot.box.gpus:
        known["gpu_count"] = len(snapshot.box.gpus)
        sizes = [gpu.memory_total_bytes for gpu in snapshot.box.gpus if not server or gpu.uuid in server.gpus]
        told = [size for size in sizes if not isinstance(size, Missing)]
        if told:
            known["gpu_memory_bytes"] = min(told)
    return server, profile, known


def _on_record(name: str) -> tuple[Server | None, dict[str, Any] | None, dict[str, Any]]:
    """Return what the keeper wrote down of a server that has ended."""
    from backends.keeper.record import ended_servers, read_all

    records = [record for record in read_all() if record.name == name]
    servers = ended_servers(records)
    if not servers:
        return None, None, {}
    return servers[0], records[0].profile, {"port": servers[0].port}


def _log_of(name: str, server: Server | None) -> Path:
    if server is not None and server.log_path is not None and Path(server.log_path).exists():
        return Path(server.log_path)
    starts = log_starts(paths.log_dir(), name)
    if not starts:
        raise NoSuchServerError(f"{name} is neither a file nor a server with a log", f"logs are in {paths.log_dir()}")
    return starts[0].path
