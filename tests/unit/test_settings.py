"""The user's config.toml: read forgivingly, told precisely, changed without losing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.errors import GpuboxError
from backends.settings import ScreenSettings, Settings, read_settings, settings_path, write_theme

WHOLE = """\
# My box.
[screen]
theme = "gpubox-day"   # bright room
bell = true
ascii = "auto"

[keys]
server.stop = "ctrl+x"
"app.quit" = ["ctrl+q", "Q"]  # both
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read_with_ids_written_either_way(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    settings = read_settings(path)
    assert settings == Settings(
        ScreenSettings("gpubox-day", True, "auto"),
        {"server.stop": ("ctrl+x",), "app.quit": ("ctrl+q", "Q")},
        path,
    )


def test_without_a_file_all_is_default_and_nothing_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert read_settings(path) == Settings(path=path)


def test_the_file_lies_beside_the_profiles_and_moves_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUBOX_HOME", str(tmp_path))
    assert settings_path() == tmp_path / "config" / "config.toml"
    settings_path().parent.mkdir()
    settings_path().write_text("[screen]\nbell = true\n")
    assert read_settings().screen.bell is True


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[screen]\nthem = 'x'\n", "config.toml:2: screen.them: no such key; did you mean theme?"),
        ("[scren]\nbell = true\n", "config.toml:1: scren: no such key; did you mean screen?"),
        ("[screen]\n\nbell = 1\n", "config.toml:3: screen.bell: must be true or false"),
        ("[screen]\nascii = 'yes'\n", 'config.toml:2: screen.ascii: must be true, false or "auto"'),
        ("[screen]\ntheme = 3\n", "config.toml:2: screen.theme: must be text; in quotes"),
        ("screen = 3\n", "config.toml:1: screen: must be a table; [screen]"),
        (
            "[keys]\nserver.stop = 7\n",
            'config.toml:2: keys.server.stop: must be a key, or a list of keys; a key as text: "x", "ctrl+x", '
            "or a list of such",
        ),
        ("[keys]\nserver.stop = []\n", "must be a key, or a list of keys"),
        ("[screen\nbell = true\n", "config.toml:1: is not TOML"),
        ("[box]\nmax_sleeping_host_memory = 64\n", "config.toml:2: box.max_sleeping_host_memory: is no amount"),
        ("[box]\nmax_sleeping_host_memory = '150%'\n", '"50%" of all'),
        ("[box]\nmax_sleeping = '5%'\n", "did you mean max_sleeping_host_memory?"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path: Path, text: str, told: str) -> None:
    settings = read_settings(written(tmp_path, text))
    assert len(settings.problems) == 1
    assert told in str(settings.problems[0])
    assert settings.screen == ScreenSettings()
    assert settings.keys == {}


@pytest.mark.parametrize(
    ("said", "most"),
    [("64 GiB", 64 << 30), ("1.5GiB", 3 << 29), ("8 GB", 8_000_000_000), ("0 B", 0), ("25%", 250), ("100 %", 1000)],
)
def test_sleeping_servers_may_hold_so_much_host_memory(tmp_path: Path, said: str, most: int) -> None:
    settings = read_settings(written(tmp_path, f"[box]\nmax_sleeping_host_memory = {said!r}\n"))
    assert settings.problems == ()
    assert settings.max_sleeping_host_bytes(1000) == most
    assert Settings().max_sleeping_host_bytes(1000) == 500


def test_sets_of_profiles_are_no_problem_of_the_screens(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, "[screen]\nbell = true\n[sets]\ndefault = ['a']\n"))
    assert (settings.problems, settings.screen.bell) == ((), True)


def test_what_is_right_beside_what_is_wrong_is_used(tmp_path: Path) -> None:
    text = "[screen]\nbell = true\nascii = 7\n[keys]\na.b = 1\nserver.stop = 'y'\n[more]\n"
    settings = read_settings(written(tmp_path, text))
    assert settings.screen == ScreenSettings(bell=True)
    assert settings.keys == {"server.stop": ("y",)}
    assert [(one.line, one.where) for one in settings.problems] == [(3, "screen.ascii"), (5, "keys.a.b"), (7, "more")]


def test_what_cannot_be_read_at_all_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in str(read_settings(tmp_path / "config.toml").problems[0])
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in str(read_settings(tmp_path / "folder").problems[0])


def test_a_chosen_theme_changes_one_line_and_keeps_comments(tmp_path: Path) -> None:
    path = written(tmp_path, WHOLE)
    path.chmod(0o640)
    write_theme(path, "gpubox-contrast")
    assert path.read_text() == WHOLE.replace('"gpubox-day"', '"gpubox-contrast"')
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(one.name for one in tmp_path.iterdir()) == ["config.toml"]


def test_a_chosen_theme_makes_the_file_and_follows_a_link(tmp_path: Path) -> None:
    path = tmp_path / "config" / "config.toml"
    write_theme(path, "nord")
    assert read_settings(path).screen.theme == "nord"
    assert path.stat().st_mode & 0o777 == 0o600
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    write_theme(link, "gpubox-day")
    assert link.is_symlink()
    assert read_settings(path).screen.theme == "gpubox-day"


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = written(tmp_path, "[screen\n")
    with pytest.raises(GpuboxError, match="not TOML"):
        write_theme(path, "nord")
    assert path.read_text() == "[screen\n"


def test_reading_no_file_costs_no_pydantic_and_no_textual(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from backends.settings import read_settings; "
        f"read_settings(pathlib.Path({str(tmp_path / 'none.toml')!r})); "
        "print([name for name in ('pydantic', 'textual', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
