"""`gpubox stop`, `restart` and `forget`: what ends or renews a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from backends.client import AsyncKeeper, KeeperClient, ensure_keeper
from backends.errors import GpuboxError, NoSuchServerError, WaitOverError
from backends.offline import snapshot_now
from tui.headless.launch import states
from tui.headless.output import complain, say


def stop(names: Sequence[str], *, everything: bool, force: bool, wait_s: float) -> int:
    """Stop servers at the same time, and wait until each is down; returns 0, or the code of the first that failed."""
    known = {server.name: server for server in snapshot_now().servers}
    if everything:
        names = [name for name, server in known.items() if server.is_live and server.foreign is None]
        if not names:
            say("no server runs")
            return 0
    unknown = [name for name in names if name not in known]
    if unknown:
        raise NoSuchServerError(f"there is no server {unknown[0]}", f"known: {', '.join(sorted(known)) or 'none yet'}")
    idle = [name for name in names if not known[name].is_live]
    for name in idle:
        say(f"{name} is {known[name].state} already")
    return asyncio.run(_stop_all([name for name in names if name not in idle], force=force, wait_s=wait_s))


async def _stop_all(names: Sequence[str], *, force: bool, wait_s: float) -> int:
    if not names:
        return 0
    ensure_keeper()
    results = await asyncio.gather(*(_stop(name, force=force, wait_s=wait_s) for name in names), return_exceptions=True)
    code = 0
    for result in results:
        if isinstance(result, GpuboxError):
            code = code or complain(result)
        elif isinstance(result, BaseException):
            raise result
    return code


async def _stop(name: str, *, force: bool, wait_s: float) -> None:
    keeper, begun, begun_at = AsyncKeeper(), time.monotonic(), time.time()
    server = await keeper.stop(name, force=force)
    try:
        async with asyncio.timeout(wait_s):
            async for server in states(keeper, name):
                if not server.is_live:
                    break
    except TimeoutError:
        raise WaitOverError(
            f"{name} is still {server.state} after {wait_s:g} s", f"gpubox stop {name} --force kills it"
        ) from None
    told = [event.text for event in await keeper.history() if event.server == name and event.at >= begun_at]
    took = f"{time.monotonic() - begun:.1f} s"
    say(f"{name} {told[-1] if told else server.state} ({took}); log: {server.log_path}")


def forget(name: str) -> int:
    """Drop a server that has ended from the list."""
    ensure_keeper().forget(name)
    return 0


def shutdown() -> int:
    """End the keeper where there is one."""
    client = KeeperClient()
    if client.is_up():
        client.shutdown()
    else:
        say("no keeper runs")
    return 0
