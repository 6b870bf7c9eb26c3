"""How a line of a log looks: folded, coloured, marked, wrapped."""

from __future__ import annotations

import re

import pytest
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from backends.logs.text import LONGEST_SHOWN, text_start
from backends.logs.windows import Extent
from tui.themes import Palette
from tui.widgets.log_lines import compiled, extent_text
from tui.widgets.log_view_lines import LineStyles, laid_out, rows_of
from tui.widgets.log_view_rows import moved

STYLES = LineStyles(
    text=Style(),
    faint=Style(color="grey50"),
    error=Style(color="red"),
    warning=Style(color="yellow"),
    own=Style(color="magenta"),
    match=Style(bgcolor="blue"),
    current_match=Style(bgcolor="green"),
)
PALETTE = Palette(*["#000000"] * 10)
STAMP = "2026-11-21T12:34:56.789+02:00 "


def test_lines_are_counted_in_words() -> None:
    told = [
        extent_text(Extent(lines=lines, exists=True, is_whole=True), (0, ()), PALETTE).plain for lines in (0, 1, 2_000)
    ]
    assert [text.split("  ")[1] for text in told] == ["0 lines", "1 line", "2,000 lines"]


def short(line: str, pattern: re.Pattern[str] | None = None) -> Text:
    at = text_start(line)
    spans = [(at + one.start(), at + one.end()) for one in pattern.finditer(line[at:])] if pattern else []
    return laid_out(line, STYLES, whole=False, spans=spans)


def colour_of(text: Text, part: str) -> str | None:
    at = text.plain.index(part)
    colours = [str(span.style) for span in text.spans if span.start <= at < span.end]
    return colours[-1] if colours else None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("(EngineCore pid=20) INFO 11-21 12:34:56 [core.py:116] Initializing", "EngineCore Initializing"),
        ("(APIServer pid=20) WARNING 11-21 12:34:56 [a/b.py:1] careful", "APIServer WARNING careful"),
        ("(Worker_TP0 pid=20) ERROR 11-21 12:34:56 [x.py:1]   File 'a'", "Worker_TP0 ERROR   File 'a'"),
        ("INFO:     Application startup complete.", "Application startup complete."),
        ("ERROR:    Exception in ASGI application", "ERROR Exception in ASGI application"),
        ("(APIServer pid=20) RuntimeError: see above", "APIServer RuntimeError: see above"),
        ("Loading: 12%", "Loading: 12%"),
        ("gpubox: ended with code 1", "gpubox: ended with code 1"),
        ("", ""),
    ],
)
def test_a_line_is_shown_short_and_can_be_had_as_it_is(line: str, shown: str) -> None:
    assert short(STAMP + line).plain == f"12:34:56.789 {shown}"
    assert laid_out(STAMP + line, STYLES, whole=True).plain == STAMP + line


@pytest.mark.parametrize(
    ("line", "part", "colour"),
    [
        ("(EngineCore pid=1) ERROR 11-21 12:34:56 [core.py:1] it broke", "it broke", "red"),
        ("WARNING 11-21 12:34:56 [x.py:1] careful", "careful", "yellow"),
        ("ValueError: bad", "bad", "red"),
        ("torch.OutOfMemoryError: CUDA out of memory", "CUDA", "red"),
        ("Traceback (most recent call last):", "recent", "red"),
        ("x.py:24: DeprecationWarning: old", "old", "yellow"),
        ("no ERRORS here, terrors neither", "here", None),
        ("INFO 11-21 12:34:56 [x.py:1] no WARNING is meant here", "meant", None),
        ("gpubox: 3 lines dropped: ERROR", "dropped", "magenta"),
    ],
)
def test_levels_are_coloured(line: str, part: str, colour: str | None) -> None:
    assert colour_of(short(STAMP + line), part) == colour


def test_a_line_without_a_stamp_is_shown_from_its_start() -> None:
    assert text_start("no stamp at all, however long the line may be") == 0
    assert short("no stamp").plain == "no stamp"
    assert text_start(STAMP + "x") == len(STAMP)


def test_matches_are_marked_where_they_are_shown() -> None:
    line = STAMP + "(EngineCore pid=20) ERROR 11-21 12:34:56 [core.py:116] core broke"
    text = short(line, re.compile("core"))
    marked = [text.plain[span.start : span.end] for span in text.spans if span.style == STYLES.match]
    assert marked == ["core"]
    assert text.plain.endswith("core broke")
    across = short(line, re.compile("EngineCore.*broke"))
    assert "".join(across.plain[s.start : s.end] for s in across.spans if s.style == STYLES.match) == (
        "EngineCore ERROR core broke"
    )


def test_a_monstrous_line_is_cut_and_says_so() -> None:
    text = short(STAMP + "x" * (LONGEST_SHOWN + 1000))
    assert text.plain.endswith("… 1,030 characters more")


@pytest.mark.parametrize("width", [41, 60, 79])
@pytest.mark.parametrize("words", ["one two three four five " * 20, "x" * 300, "界" * 150, "a 界面 b " * 40])
def test_wrapped_rows_fit_and_lose_nothing(width: int, words: str) -> None:
    text = short(STAMP + words)
    rows = list(rows_of(text, width, whole=False))
    assert all(cell_len(row.plain) <= width for _, row in rows)
    assert all(row.plain.startswith(" " * 13) for _, row in rows[1:])
    assert "".join(row.plain if not number else row.plain[13:] for number, (_, row) in enumerate(rows)) == text.plain
    assert [start for start, _ in rows] == sorted({start for start, _ in rows})


def test_positions_move_row_by_row_through_wrapped_lines() -> None:
    def height(number: int) -> int:
        return {0: 1, 1: 5, 2: 1}.get(number, 2)

    seen = [(0, 0)]
    while (position := moved(seen[-1], 1, 0, 4, height)) != seen[-1]:
        seen.append(position)
    assert seen == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0)]
    for rows in range(len(seen)):
        assert moved((4, 0), -rows, 0, 4, height) == seen[-1 - rows]
        assert moved((0, 0), rows, 0, 4, height) == seen[rows]
    assert moved((4, 0), -99, 0, 4, height) == (0, 0)
    assert moved((2, 0), 99, 0, 4, None) == (4, 0)
    assert moved((2, 0), -99, 0, 4, None) == (0, 0)


def test_only_a_capital_letter_makes_capitals_matter() -> None:
    assert compiled("error").search("ERROR")
    assert not compiled("Error").search("ERROR")
    assert compiled(r"\Serror").search("XERROR")


@pytest.mark.parametrize("text", ["(", "a{99999999999}", "(" * 5000 + ")" * 5000, "(?L)a"])
def test_what_is_no_expression_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(re.error):
        compiled(text)
