"""ASCII for poor terminals: every glyph has one, as wide as it was, and bars stay honest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import tui
from backends.settings import ScreenSettings, Settings
from backends.simulation import SimulatedKeeper
from tests.tui.link import NOW, shown, until
from tui.app import PANELS, GpuboxApp
from tui.ascii import DENSITY, TABLE, Terminal, to_ascii, wants_ascii
from tui.widgets.bars import bar, history

UTF8 = {"TERM": "xterm-256color", "LANG": "en_US.UTF-8"}


def drawn() -> set[str]:
    """Every character beyond ASCII in the texts of the screens, docstrings apart."""
    found: set[str] = set()
    for path in Path(tui.__file__).parent.rglob("*.py"):
        if "headless" in path.parts or path.name == "ascii.py":
            continue
        tree = ast.parse(path.read_text())
        prose = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
                found |= {sign for sign in node.value if not sign.isascii()}
    return found


def test_every_glyph_of_the_screens_has_a_sign_of_its_own_in_the_table() -> None:
    without = {f"{sign} U+{ord(sign):04X}" for sign in drawn() if to_ascii(sign) == "?" or cell_len(sign) != 1}
    assert not without, f"OFFENDERS, give them a sign in tui/ascii.py: {sorted(without)}"


def test_the_table_gives_one_ascii_sign_for_each() -> None:
    assert all(len(sign) == 1 and sign.isascii() and sign.isprintable() for sign in TABLE.values())


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_any_text_becomes_ascii_that_takes_as_many_cells(text: str) -> None:
    plain = to_ascii(text)
    assert plain.isascii()
    assert len(plain) == cell_len(text)


def test_letters_lose_accents_and_what_is_unknown_says_so() -> None:
    assert to_ascii("Zürich · 8 × H200 – 61 °C…") == "Zurich . 8 x H200 - 61 oC~"
    assert to_ascii("日本 ☃") == "???? ?"


def test_blocks_keep_their_order() -> None:
    levels = to_ascii(" ▁▂▃▄▅▆▇█")
    assert len(set(levels)) == 9
    assert [("" + " " + DENSITY + "#").index(sign) for sign in levels] == list(range(9))


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_a_bar_says_the_same_in_ascii(percent: int) -> None:
    text = to_ascii(bar(percent / 100, 10, "red", "grey").plain)
    halves = 2 * text.count("#") + text.count("=")
    assert abs(halves - percent / 5) <= 0.5
    assert len(text) == 10
    assert text == "".join(sorted(text, key="#=-".index))


def test_a_history_says_the_same_in_ascii() -> None:
    values = [n / 16 for n in range(17)]
    weights = {sign: level for level, sign in enumerate(" " + DENSITY + "#")}
    upper, lower = (to_ascii(line) for line in history(values, 17, 2, 1.0))
    heights = [weights[a] + weights[b] for a, b in zip(upper, lower, strict=True)]
    assert heights == [max(1, n) for n in range(17)]


def test_braille_curves_keep_their_place_in_the_cell() -> None:
    assert to_ascii("\u2800") == " "
    assert to_ascii("⠁") == to_ascii("⠈") == "'"
    assert to_ascii("⡀") == to_ascii("⢀") == "."
    assert to_ascii("⠇")[0] in ":'"
    assert to_ascii("⣿") == "#"


@pytest.mark.parametrize(
    ("environ", "poor"),
    [
        (UTF8, False),
        ({"TERM": "xterm"}, False),
        ({"TERM": "xterm", "LANG": "de_DE.ISO-8859-1"}, True),
        ({"TERM": "xterm", "LANG": "de_DE.ISO-8859-1", "LC_CTYPE": "C.UTF-8"}, True),
        ({"TERM": "xterm", "LANG": "de_DE@euro"}, True),
        ({"TERM": "xterm", "LC_ALL": "C", "LANG": "en_US.UTF-8"}, True),
        ({"TERM": "xterm", "LC_CTYPE": "C.UTF-8"}, False),
        ({"TERM": "linux", "LANG": "en_US.UTF-8"}, True),
        ({"TERM": "vt100", "LANG": "en_US.UTF-8"}, True),
        ({"TERM": "dumb"}, True),
        ({}, True),
    ],
)
def test_a_poor_terminal_is_told_by_its_kind_and_its_locale(environ: dict[str, str], poor: bool) -> None:
    assert Terminal(environ, "ISO-8859-15").is_poor is poor


def test_the_environment_outranks_the_setting_and_the_setting_the_terminal() -> None:
    assert wants_ascii(False, {**UTF8, "GPUBOX_ASCII": "1"}, has_terminal=True)
    assert not wants_ascii(True, {**UTF8, "GPUBOX_ASCII": "0"}, has_terminal=True)
    assert wants_ascii(True, UTF8, has_terminal=False)
    assert not wants_ascii(False, {"TERM": "dumb"}, has_terminal=True)
    assert not wants_ascii("auto", {"TERM": "dumb"}, has_terminal=False)
    assert wants_ascii("auto", {"TERM": "dumb"}, has_terminal=True)


async def test_every_screen_is_ascii_when_the_settings_say_so() -> None:
    settings = Settings(ScreenSettings(ascii=True))
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), clock=lambda: NOW, settings=settings)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for number in range(1, len(PANELS) + 1):
            await pilot.press(f"f{number}")
            await pilot.pause()
            assert shown(pilot).isascii()
            assert "gpubox" in shown(pilot)
        await pilot.press("f1", "question_mark")
        assert "+- Keys" in shown(pilot)
        assert shown(pilot).isascii()
