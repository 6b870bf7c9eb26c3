"""Sets of profiles in config.toml, and what starts one after a reboot."""

from __future__ import annotations

import os
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from backends import autostart
from backends.errors import GpuboxError, UsageError
from backends.sets import Member, change_default, members_of, read_sets, settings_path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return tmp_path


def settings(text: str) -> None:
    settings_path().parent.mkdir(parents=True, exist_ok=True)
    settings_path().write_text(text)


def test_sets_are_read_in_each_of_their_forms() -> None:
    settings("""
theme = "dark"
[sets]
default = ["qwen", { profile = "llama", gpus = "0, 1", port = 8001 }]
night = [
    { profile = "qwen", gpus = [2, 3], port = "auto", name = "qwen-2" },
    { profile = "bge", gpus = "cpu" },
    { profile = "tiny", gpus = 7 },
]
""")
    assert read_sets() == {
        "default": (Member("qwen"), Member("llama", ("0", "1"), 8001)),
        "night": (Member("qwen", ("2", "3"), 0, "qwen-2"), Member("bge", ("cpu",)), Member("tiny", ("7",))),
    }
    assert [member.server for member in members_of(["night", "default"])] == ["qwen-2", "bge", "tiny", "qwen", "llama"]


def test_a_server_of_two_sets_is_started_once() -> None:
    settings('[sets]\na = ["x", { profile = "y", name = "z" }]\nb = ["x", "y", "z"]')
    assert [member.server for member in members_of(["a", "b"])] == ["x", "z", "y"]


def test_without_settings_there_is_no_set() -> None:
    assert read_sets() == {}
    with pytest.raises(UsageError) as none:
        members_of(["default"])
    assert none.value.hint == "gpubox autostart add PROFILE makes it"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sets\n", ": Expected ']' at the end of a table declaration (at line 1, column 6)"),
        ('[set]\ndefault = ["a"]', ":1: set: no such key; did you mean sets?"),
        ("x = 1\nsets = 3", ':2: sets: must be a table; write [sets] and default = ["NAME"]'),
        ('[sets]\ndefault = "a"', ':2: sets.default: must be a list of profiles; write ["NAME"]'),
        ('[sets]\na = ["b", 3]', ':2: sets.a.1: must be a profile\'s name or a table; { profile = "NAME", gpus'),
        ('[sets]\na = [""]', ":2: sets.a.0: is empty; name a profile"),
        ('[sets]\na = [{ profile = "b", gpu = 1 }]', ":2: sets.a.0.gpu: no such key; did you mean gpus?"),
        ("[sets]\na = [{ gpus = 1 }]", ":2: sets.a.0.profile: must be a profile's name; add profile ="),
        ('[sets]\na = [{ profile = "b", gpus = true }]', ':2: sets.a.0.gpus: must be GPUs; write "0,1", [0, 1], '),
        ('[sets]\na = [{ profile = "b", port = 70000 }]', ":2: sets.a.0.port: is not a port; use 1–65535"),
        ('[sets]\na = [{ profile = "b", name = 4 }]', ":2: sets.a.0.name: must be a server's name"),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_what_to_do(text: str, told: str) -> None:
    settings(text)
    with pytest.raises(UsageError) as wrong:
        read_sets()
    assert f"{settings_path()}{told}" in wrong.value.message


def test_all_problems_are_told_at_once() -> None:
    settings("[sets]\na = 1\nb = 2")
    with pytest.raises(UsageError) as wrong:
        read_sets()
    assert wrong.value.message.count("must be a list of profiles") == 2


def test_settings_that_cannot_be_read_are_told_in_one_line() -> None:
    settings_path().mkdir(parents=True)
    with pytest.raises(UsageError, match=r"config\.toml cannot be read: Is a directory"):
        read_sets()
    settings_path().rmdir()
    settings_path().write_bytes(b"# \xff")
    with pytest.raises(UsageError, match=r"is not UTF-8 \(byte 2\)"):
        read_sets()


def test_a_set_that_is_not_there_brings_the_nearest() -> None:
    settings("[sets]\nnight = []")
    with pytest.raises(UsageError) as wrong:
        members_of(["nigt"])
    assert wrong.value.hint == "did you mean night?"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[sets]\ndefault = ["new"]\n'),
        ("# mine\ntheme = 1\n", '# mine\ntheme = 1\n\n[sets]\ndefault = ["new"]\n'),
        ("# no line feed\ntheme = 1", '# no line feed\ntheme = 1\n\n[sets]\ndefault = ["new"]\n'),
        ("[sets]\nnight = []  # at night\n\n[x]\n", '[sets]\ndefault = ["new"]\nnight = []  # at night\n\n[x]\n'),
        (
            '[sets]\n# why\ndefault = [\n    "old",  # first\n    { profile = "b", gpus = [0, 1] },\n]\n[x]\ny = 1\n',
            '[sets]\n# why\ndefault = ["old", { profile = "b", gpus = [0, 1] }, "new"]\n[x]\ny = 1\n',
        ),
    ],
)
def test_adding_leaves_the_rest_of_the_file_as_it_is(before: str, after: str) -> None:
    settings(before)
    members = change_default(add=["new", "new"])
    assert settings_path().read_text() == after
    assert members[-1] == Member("new")
    assert read_sets()["default"] == members
    change_default(add=["new"])
    assert settings_path().read_text() == after


def test_removing_takes_out_and_only_what_is_there() -> None:
    settings('[sets]\ndefault = ["a", { profile = "b", gpus = 1 }, "c"]\n')
    assert change_default(remove=["b", "a"]) == (Member("c"),)
    assert settings_path().read_text() == '[sets]\ndefault = ["c"]\n'
    with pytest.raises(UsageError) as wrong:
        change_default(remove=["b"])
    assert (wrong.value.message, wrong.value.hint) == ("b does not start after a reboot", "known: c")


def test_a_file_that_cannot_be_changed_by_lines_is_left_alone() -> None:
    text = 'sets = { default = ["a"] }\n'
    settings(text)
    with pytest.raises(UsageError, match="cannot be changed without harm") as wrong:
        change_default(add=["b"])
    assert wrong.value.hint == 'write into it: default = ["a", "b"]'
    assert settings_path().read_text() == text
    assert [path.name for path in settings_path().parent.iterdir()] == ["config.toml"]


def test_a_full_disk_leaves_the_old_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings("[sets]\n")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        change_default(add=["a"])
    assert settings_path().read_text() == "[sets]\n"
    assert len(list(settings_path().parent.iterdir())) == 1


ODD = {"PATH": '/a b:/c"d', "GPUBOX_HOME": "/x%y$z\\w", "SECRET": "s"}


def test_the_unit_quotes_what_systemd_would_read_otherwise() -> None:
    text = autostart.unit_text(["/opt/my python/bin/python", "-m", "$x%y"], ODD)
    assert 'ExecStart="/opt/my python/bin/python" "-m" "$$x%%y"\n' in text
    assert r'Environment="PATH=/a b:/c\"d"' + "\n" in text
    assert r'Environment="GPUBOX_HOME=/x%%y$z\\w"' + "\n" in text
    assert "SECRET" not in text
    assert "Type=oneshot\nRemainAfterExit=yes\n" in text


def test_the_line_for_cron_is_one_command() -> None:
    line = autostart.cron_line(["/opt/my python", "up"], ODD)
    assert line.startswith("@reboot ")
    assert "\n" not in line
    words = shlex.split(line.removeprefix("@reboot ").replace(r"\%", "%"))
    command = words[: words.index("2>&1") - 1]
    assert command == ["env", f"PATH={ODD['PATH']}", f"GPUBOX_HOME={ODD['GPUBOX_HOME']}", "/opt/my python", "up"]


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a program in systemctl's place; it notes what it is asked, and then does as it is told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    asked = tmp_path / "asked"

    def make(then: str = "exit 0") -> Path:
        program = folder / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n{then}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
        return asked

    return make


def test_installing_writes_and_enables_the_unit(systemctl: Callable[[str], Path]) -> None:
    asked = systemctl("exit 0")
    assert autostart.has_user_manager()
    autostart.install()
    text = autostart.unit_path().read_text()
    assert '"-P" "-m" "tui" "up" "default"' in text
    assert autostart.uninstall()
    assert not autostart.uninstall()
    assert not autostart.unit_path().exists()
    assert asked.read_text().splitlines() == [
        "--user show-environment",
        "--user daemon-reload",
        "--user enable gpubox.service",
        "--user disable gpubox.service",
        "--user daemon-reload",
    ]


def test_a_systemd_that_refuses_is_told(systemctl: Callable[[str], Path]) -> None:
    systemctl('test "$2" != enable || { echo no such unit >&2; exit 1; }')
    with pytest.raises(GpuboxError, match=r"systemctl --user enable gpubox\.service: no such unit"):
        autostart.install()


def test_no_manager_is_no_trouble(systemctl: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    systemctl("echo Failed to connect to bus >&2; exit 1")
    assert not autostart.has_user_manager()
    monkeypatch.setenv("PATH", "/nowhere")
    assert not autostart.has_user_manager()


def test_the_unit_is_what_systemd_takes_for_one(tmp_path: Path) -> None:
    import shutil

    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / autostart.UNIT
    unit.write_text(autostart.unit_text(autostart.command_line(), {"PATH": "/a b"}))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env={"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if autostart.UNIT in line]
    assert complaints == []


def test_settings_stay_toml_whatever_a_profile_is_called() -> None:
    names = ['a"b', "c\\d", "é", "x#y"]
    settings("[sets]\n")
    change_default(add=names)
    assert tomllib.loads(settings_path().read_text())["sets"]["default"] == names
