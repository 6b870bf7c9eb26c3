"""`make demo HEADLESS=1`: the whole of the main job in one go, on the CPU."""

from __future__ import annotations

import time

from backends import paths
from backends.client import ensure_keeper
from tui.headless.chat import chat
from tui.headless.control import stop
from tui.headless.launch import Wishes, run
from tui.headless.output import say
from tui.headless.status import status
from tui.launching import LaunchIntent, open_store, read_launchable

QUESTION = "What is the KV cache?"


def run_demo() -> int:
    """Start profile `demo`, stream one answer, show status and the log's path, stop; tell the time each took."""
    begun = time.monotonic()
    code = run(read_launchable(open_store(None), "demo").request(LaunchIntent("demo", gpus=("cpu",))), Wishes())
    if code:
        return code
    ready = time.monotonic()
    try:
        say(f"\n> {QUESTION}")
        code = chat(
            "demo",
            QUESTION,
            system=None,
            temperature=0.0,
            max_tokens=None,
            json=False,
            connection=ensure_keeper().connection("demo"),
        )
        say("")
        status(as_json=False, watch=False)
    finally:
        stopping = time.monotonic()
        stop(["demo"], everything=False, force=False, wait_s=60)
    now = time.monotonic()
    say(f"\nlogs: {paths.log_dir()}")
    say(f"ready after {ready - begun:.0f} s, stopped in {now - stopping:.1f} s, {now - begun:.0f} s in all")
    return code
