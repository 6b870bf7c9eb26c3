"""`python -P -m backends.front CONFIG.json`: the front of one engine, a process that its own shim keeps.

Exit codes: 0 when it was told to end or its engine has ended, 98 when somebody else has its port, 1 for anything else.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from pathlib import Path

from backends.errors import GpuboxError
from backends.front.config import PORT_IN_USE, read_config


def main(argv: list[str]) -> int:
    """Run a front until its end; returns its exit code."""
    if len(argv) != 1:
        print("usage: python -m backends.front CONFIG.json", file=sys.stderr)
        return 2
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    silent = logging.getLogger("backends.front.silent")
    silent.disabled = True
    from backends.front.serving import listening, serve

    try:
        config = read_config(Path(argv[0]))
        address = f"{config.host}:{config.port}"
        try:
            door = listening(config.host, config.port)
        except OSError as problem:
            print(f"[Errno {problem.errno}] {problem.strerror}: {address}", file=sys.stderr)
            return PORT_IN_USE if problem.errno == errno.EADDRINUSE else 1
        asyncio.run(serve(config, door))
    except (GpuboxError, OSError) as problem:
        print(f"the front cannot run: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
