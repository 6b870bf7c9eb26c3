"""`python -m backends.demo`: make the demo model, where it is not there yet."""

from __future__ import annotations

import subprocess
import sys

from backends.demo.model import build_argv, demo_model_dir, is_built


def main() -> int:
    """Train it with this very Python; returns the exit code."""
    folder = demo_model_dir()
    if is_built(folder):
        return 0
    print("· training the demo model (once, about a minute)", flush=True)
    return subprocess.run(build_argv(sys.executable), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
