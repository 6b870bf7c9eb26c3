"""Who a process is: secrets masked, hidden ones called so."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from backends.gpus.processes import ANOTHER_CONTAINER, COMMAND_LIMIT, command_line, describe


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("vllm serve m --api-key s3cret --port 1", "vllm serve m --api-key *** --port 1"),
        ("vllm serve m --api-key a b --port 1", "vllm serve m --api-key *** *** --port 1"),
        ("x --hf-token=s3cret -token s3cret", "x --hf-token=*** -token ***"),
        ("x --password s3cret --client_secret s3cret", "x --password *** --client_secret ***"),
        ("x --max-num-batched-tokens 8 --tokenizer t", "x --max-num-batched-tokens 8 --tokenizer t"),
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("", ""),
    ],
)
def test_secrets_on_a_command_line_are_masked(words: str, shown: str) -> None:
    assert command_line(words.split()) == shown


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = "print(flush=True); import sys; sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_process_is_told_by_its_command_and_user() -> None:
    with running("--api-key", "s3cret") as child:
        command, user = describe(child.pid)
    assert command.startswith(sys.executable)
    assert command.endswith("--api-key ***")
    assert user == getpass.getuser()


def test_a_long_command_is_cut() -> None:
    with running("x" * 1000) as child:
        assert len(describe(child.pid)[0]) == COMMAND_LIMIT


def test_a_zombie_keeps_its_name() -> None:
    with running() as child:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and left unreaped
        command, user = describe(child.pid)
    assert "python" in command
    assert user == getpass.getuser()


@pytest.mark.parametrize("pid", [0, 2**22 + 1, 2**32 - 1])
def test_a_pid_that_does_not_exist_here_is_another_containers(pid: int) -> None:
    assert describe(pid) == (ANOTHER_CONTAINER, "?")


def test_a_command_line_is_one_printable_line() -> None:
    program = "\nimport sys\n\tprint('\x1b[2J')\n"
    assert command_line(["python", "-c", program]) == "python -c import sys print(' [2J')"
