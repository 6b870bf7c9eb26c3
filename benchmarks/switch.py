"""How long a switch between models takes on real GPUs, from the request to the first token a client sees, step by step.

`python -m benchmarks.switch PROFILE PROFILE [PROFILE …] [--switches N] [--levels 1,2] [--gpus 0] [--json FILE]`. The
profiles say `sleep = true`, and their servers do not fit side by side. First each is started by a switch to it: the
first, and those that find its compiled code in the cache, are what a switch is measured against. Then N switches at
each level go round them all. Beside what a client sees stand the steps that the keeper tells, and what is left of
the whole once the engines' own calls are taken off: gpubox's part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from backends.client import AsyncKeeper, ensure_keeper
from backends.snapshots import Server, SnapshotUpdate, SwitchRequest, SwitchUpdate
from backends.switches import Level, Switch
from tui.launching import LaunchIntent, open_store, read_launchable

ENGINE_STEPS = frozenset({"sleep", "wake", "weights", "kv-cache", "prefix-cache", "first-token", "start"})
"""What engines do in a switch; all other time of it is ours."""

LONGEST_S = 400.0


@dataclass(frozen=True, slots=True)
class Round:
    """One switch, in seconds: what a client saw, what the keeper told, and what of that was not the engines' own."""

    what: str
    to: str
    client_s: float
    keeper_s: float
    own_s: float
    steps: dict[str, float]


class Bench:
    """The servers between which is switched."""

    def __init__(self, names: Sequence[str], gpus: str) -> None:
        store, chosen = open_store(None), tuple(gpus.split(","))
        self._starts = {name: read_launchable(store, name).request(LaunchIntent(name, chosen)) for name in names}
        self._keeper = AsyncKeeper(ensure_keeper())

    async def switch(self, what: str, to: str, level: Level | None = None) -> Round:
        """Switch while a client waits for the target's first token; one that is not up yet is asked once it is."""
        lives, hears = await self._live(to), asyncio.Event()
        listening = asyncio.create_task(self._end_of(to, hears))
        await hears.wait()
        begun = time.monotonic()
        await self._keeper.switch(SwitchRequest(to, self._starts[to], level))
        asking = asyncio.create_task(_first_token(lives)) if lives is not None else None
        switch = await asyncio.wait_for(listening, LONGEST_S)
        if switch.outcome != "done" or switch.took_s is None:
            raise SystemExit(f"the switch to {to} ended as {switch.outcome}: {switch.error}")
        server = await self._live(to)
        assert server is not None
        seen_at = await (asking or _first_token(server))
        steps: dict[str, float] = {}
        for step in switch.steps:
            steps[step.name] = steps.get(step.name, 0.0) + (step.took_s or 0.0)
        engines_s = sum(took for name, took in steps.items() if name in ENGINE_STEPS)
        return Round(what, to, seen_at - begun, switch.took_s, switch.took_s - engines_s, steps)

    async def _live(self, name: str) -> Server | None:
        snapshot = await asyncio.to_thread(ensure_keeper().snapshot)
        return next((one for one in snapshot.servers if one.name == name and one.is_live), None)

    async def _end_of(self, to: str, hears: asyncio.Event) -> Switch:
        async for update in self._keeper.updates():
            match update:
                case SnapshotUpdate():
                    hears.set()
                case SwitchUpdate(switch=switch) if switch.to == to and switch.outcome != "running":
                    return switch
        raise SystemExit("the keeper's event stream ended")


async def _first_token(server: Server) -> float:
    """Return when the first chunk of an answer came; the front holds the request until the model is awake."""
    body = {"model": server.served_name, "prompt": "Hello", "max_tokens": 1, "temperature": 0, "stream": True}
    limit = aiohttp.ClientTimeout(total=LONGEST_S)
    async with aiohttp.ClientSession(timeout=limit) as session:
        while True:
            async with session.post(f"{server.address}/v1/completions", json=body) as answer:
                if answer.status == 503:  # it was asked a moment before its front was told that it is to wake
                    await asyncio.sleep(0.005)
                    continue
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        return time.monotonic()
                raise SystemExit(f"{server.name} answered {answer.status} without a token")


def show(what: str, rounds: Sequence[Round], against: Sequence[Round]) -> None:
    """Print medians and worst of some switches, their steps, and ratios to the starts."""
    client = sorted(one.client_s for one in rounds)
    median = statistics.median(client)
    print(f"\n{what}: {len(rounds)} ×, first token at a client: median {median:.2f} s, worst {client[-1]:.2f} s")
    print(f"  as the keeper tells: median {statistics.median(one.keeper_s for one in rounds):.2f} s", end="")
    own = sorted(one.own_s * 1000 for one in rounds)
    print(f"; beside the engines' calls: median {statistics.median(own):.0f} ms, worst {own[-1]:.0f} ms")
    for name in dict.fromkeys(step for one in rounds for step in one.steps):
        took = [one.steps[name] for one in rounds if name in one.steps]
        print(f"    {name:<13} median {statistics.median(took):7.3f} s   worst {max(took):7.3f} s")
    for start in [one for one in against if "start" in one.steps]:  # it may have been up already
        print(f"  {start.what} took {start.client_s / median:.0f} × as long ({start.client_s:.1f} s)")


async def measure(names: Sequence[str], gpus: str, switches: int, levels: Sequence[Level]) -> list[Round]:
    """Run it all, and return every switch."""
    bench, first = Bench(names, gpus), names[0]
    starts = [await bench.switch("first start", first)]
    starts += [await bench.switch("start, code in the cache", name, levels[0]) for name in names[1:]]
    for one in starts:
        print(f"{one.what:<30} {one.to}: {one.client_s:6.1f} s   {_in_words(one.steps)}")
    rounds = [*starts]
    for level in levels:
        for name in (*names, first):  # host memory is pinned at each server's first sleep only
            one = await bench.switch(f"level {level}, warming up", name, level)
            print(f"{one.what:<30} {name}: {one.client_s:6.2f} s   {_in_words(one.steps)}", flush=True)
            rounds.append(one)
        turns = (names[n % len(names)] for n in range(1, switches + 1))
        timed = [await bench.switch(f"level {level}", name, level) for name in turns]
        show(f"level {level}, {len(names)} models", timed, starts[:2])
        rounds += timed
    return rounds


def _in_words(steps: dict[str, float]) -> str:
    return ", ".join(f"{name} {took:.2f}" for name, took in steps.items())


def main() -> None:
    """Measure, print, and write every single figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", metavar="PROFILE")
    parser.add_argument("--switches", type=int, default=10)
    parser.add_argument("--levels", default="1,2")
    parser.add_argument("--gpus", default="0", help="which GPUs all of them are on")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    levels: list[Level] = [1 if one == "1" else 2 for one in options.levels.split(",")]
    rounds = asyncio.run(measure(options.profiles, options.gpus, options.switches, levels))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in rounds], indent=1))


if __name__ == "__main__":
    main()
