"""Themes can be read: contrast, no information by colour alone, NO_COLOR, and a choice that lasts."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.style import Style
from textual.color import Color
from textual.theme import Theme
from textual.widgets import DataTable, Input

from backends.settings import ScreenSettings, Settings, read_settings
from backends.simulation import SimulatedKeeper
from tests.tui.link import NOW, FakeLink, shown, until
from tui.app import GpuboxApp
from tui.themes import CONTRAST, DAY, NIGHT, STATES, palette

AAA, AA, GRAPHICS = 7.0, 4.5, 3.0
TEXTS = ("text", "dim", "primary", "secondary", "accent", "good", "warn", "bad")


def contrast(one: str | Color, other: str | Color) -> float:
    """The contrast ratio of WCAG 2: 1 to 21."""

    def luminance(colour: Color) -> float:
        parts = [part / 255 for part in colour.rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(Color.parse(colour)) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_right() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


async def test_the_high_contrast_theme_is_aaa_wherever_text_stands() -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=Settings(ScreenSettings(theme=CONTRAST.name)))
    async with app.run_test():
        assert app.theme == CONTRAST.name
        colours, variables = palette(app.screen.app), app.theme_variables
        grounds = [variables[name] for name in ("background", "surface", "panel", "block-cursor-background")]
        grounds.append(variables["block-cursor-blurred-background"])
        weak = {
            f"{name} on {ground}: {contrast(getattr(colours, name), ground):.1f}"
            for name in TEXTS
            for ground in grounds
            if contrast(getattr(colours, name), ground) < AAA
        }
        assert not weak
        for name in ("footer-key-foreground", "footer-description-foreground"):
            assert contrast(variables[name], variables["footer-background"]) >= AAA
        for name in ("faint",):
            assert contrast(getattr(colours, name), variables["background"]) >= GRAPHICS
        assert contrast(variables["border"], variables["surface"]) >= GRAPHICS


@pytest.mark.parametrize("theme", [NIGHT, DAY], ids=lambda theme: theme.name)
async def test_the_other_themes_are_aa_on_their_background(theme: Theme) -> None:
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=Settings(ScreenSettings(theme=theme.name)))
    async with app.run_test():
        colours = palette(app.screen.app)
        weak = {
            name: round(contrast(getattr(colours, name), colours.background), 2)
            for name in TEXTS
            if contrast(getattr(colours, name), colours.background) < AA
        }
        assert not weak


def test_states_are_told_apart_without_colour() -> None:
    signs = [sign for sign, _ in STATES.values()]
    assert len(set(signs)) == len(signs)


async def test_no_color_leaves_no_colour_and_the_cursor_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = GpuboxApp(SimulatedKeeper(clock=lambda: NOW), clock=lambda: NOW)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.snapshot is not None, "the first state")
        for key in ("f1", "f2"):
            await pilot.press(key)
            await pilot.pause()
            segments = [one for strip in app.screen._compositor.render_strips() for one in strip]
            styles = {one.style for one in segments if one.style is not None}
            assert all(is_grey(style) for style in styles)
            faint = {
                one.text.strip()
                for one in segments
                if any(sign.isalnum() for sign in one.text) and one.style and ratio(one.style) < GRAPHICS
            }
            assert not faint
            table = next(iter(app.screen.query(DataTable)))
            row = table.region.y + table.header_height * table.show_header + table.cursor_row
            strips = app.screen._compositor.render_strips()
            assert any(is_marked(one.style) for one in strips[row] if one.style), shown(pilot).splitlines()[row]
            assert not any(is_marked(one.style) for one in strips[row + 1] if one.style)


def told(app: GpuboxApp) -> str:
    return "\n".join(notice.message for notice in app._notifications)


def is_grey(style: Style) -> bool:
    found = [colour.get_truecolor() for colour in (style.color, style.bgcolor) if colour is not None]
    return all(max(one) - min(one) <= 2 for one in found)


def is_marked(style: Style) -> bool:
    return bool(style.reverse or style.underline)


def ratio(style: Style) -> float:
    if style.color is None or style.bgcolor is None:
        return 21.0
    return contrast(Color.from_rich_color(style.color), Color.from_rich_color(style.bgcolor))


async def test_a_theme_that_is_chosen_is_remembered_and_one_that_is_tried_by_code_is_not(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n[screen]\nbell = true\n")
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=read_settings(path))
    async with app.run_test(size=(100, 30)) as pilot:
        app.theme = "nord"
        await pilot.pause()
        assert "nord" not in path.read_text()
        app.action_change_theme()
        await pilot.pause()
        app.screen.query_one(Input).value = "gpubox-day"
        await until(pilot, lambda: "gpubox-day" in shown(pilot), "the theme in the list")
        await until(pilot, lambda: "light" in shown(pilot), "what it is")
        await pilot.press("enter")
        await until(pilot, lambda: app.theme == "gpubox-day", "the theme")
        await until(pilot, lambda: "gpubox-day" in path.read_text(), "it in the file")
    assert path.read_text() == '# mine\n[screen]\nbell = true\ntheme = "gpubox-day"\n'


async def test_an_unknown_theme_is_told_and_ours_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[screen]\ntheme = "gpubox-dya"\n')
    app = GpuboxApp(FakeLink(), clock=lambda: NOW, settings=read_settings(path))
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: "did you mean gpubox-day?" in told(app), "the notice")
        assert app.theme == NIGHT.name
