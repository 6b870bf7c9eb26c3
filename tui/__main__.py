"""The `gpubox` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run a command line; returns the exit code, which `backends.errors` lists."""
    from typer.exceptions import Exit, TyperException
    from typer.main import get_command

    from backends.errors import GpuboxError
    from tui.cli import app
    from tui.headless.output import complain, end_quietly, misread, prepare

    prepare()
    try:
        # Not `app()`: that would answer a closed pipe, and errors of its own, in typer's way.
        command = get_command(app)
        with command.make_context("gpubox", sys.argv[1:]) as context:
            code = command.invoke(context)
        sys.stdout.flush()
    except Exit as end:
        code = end.exit_code
    except TyperException as problem:
        return complain(misread(problem))
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
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
