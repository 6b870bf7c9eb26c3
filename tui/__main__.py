"""The `gpubox` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run a command line; returns the exit code, which `backends.errors` lists."""
    from backends.errors import GpuboxError
    from tui.headless.output import complain, end_quietly, prepare

    prepare()
    try:
        # Without arguments there is nothing to parse, and what parses takes longer to import than the screen to paint.
        code = _screen() if len(sys.argv) == 1 and sys.stdout.isatty() else _command()
        sys.stdout.flush()
    except GpuboxError as problem:
        return complain(problem)
    except BrokenPipeError:
        end_quietly()
        return 0
    except OSError as problem:
        end_quietly()
        return complain(GpuboxError(str(problem)))
    except KeyboardInterrupt:
        return 130
    return code


def _screen() -> int:
    import gc
    from functools import partial
    from threading import Thread

    gc.disable()  # there is no garbage yet; `open_screen` enables it again
    # A keeper takes longer to come up than the screen, so it begins first; a failure is told when the screen asks it.
    starting = Thread(target=_start_keeper, daemon=True)
    starting.start()
    from tui.headless.screen import open_screen
    from tui.launching import open_store

    return open_screen(partial(open_store, None), None, None, starting)


def _start_keeper() -> None:
    from contextlib import suppress

    from backends.client import ensure_keeper
    from backends.errors import GpuboxError

    with suppress(GpuboxError, OSError):
        ensure_keeper()


def _command() -> int:
    from typer.exceptions import Exit, TyperException
    from typer.main import get_command

    from tui.cli import app
    from tui.headless.output import complain, misread

    try:
        # Not `app()`: that would answer a closed pipe, and errors of its own, in typer's way.
        command = get_command(app)
        with command.make_context("gpubox", sys.argv[1:]) as context:
            code = command.invoke(context)
    except Exit as end:
        code = end.exit_code
    except TyperException as problem:
        return complain(misread(problem))
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
