"""The keys that work right now, read off the bindings themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

from tui.bindings import bindings_here, keys_shown
from tui.format import fit
from tui.themes import Palette, palette
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_text import can_scroll

if TYPE_CHECKING:
    from tui.app import GpuboxApp

KEYS_CELLS = 14
COLUMN_CELLS = 69
COLUMN_GAP = 3
FRAME_CELLS = 7
EVERYWHERE = "Everywhere"
ALWAYS = (("↑ ↓, j k", "move"), ("Tab", "next part of the screen"), ("Esc", "back, or out of a field"))


@dataclass(frozen=True, slots=True)
class HelpLine:
    """What a key does; `names` are the bindings' ids, by which config.toml remaps them."""

    keys: str
    text: str
    names: tuple[str, ...] = ()
    is_offered: bool = True


HelpGroup = tuple[str, tuple[HelpLine, ...]]


class HelpScreen(ModalScreen[None]):
    """A sheet of keys over the screen that it is about; `a` shows also those that do nothing now, with their ids."""

    DEFAULT_CSS = """
    HelpScreen {
        align: center middle;

        #sheet {
            width: 76;
            max-width: 96%;
            height: auto;
            max-height: 90%;
            padding: 0 2;
            border: round $primary;
            border-title-color: $primary;
            border-title-style: bold;
            background: $surface;
        }

        &.-two #sheet {
            width: 150;
        }

        #keys {
            height: auto;
            text-wrap: nowrap;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "a", "all", "All keys", id="help.all", tooltip="Also keys that do nothing now, and ids for config.toml"
        ),
        Binding("j,down", "scroll_lines(1)", "Down", show=False, id="help.down", tooltip="Scroll"),
        Binding("k,up", "scroll_lines(-1)", "Up", show=False, id="help.up", tooltip="Scroll"),
        Binding("escape,q,question_mark,enter", "dismiss", "Close", id="help.close", tooltip="Back to the screen"),
    ]

    def __init__(self, here: Sequence[HelpGroup]) -> None:
        super().__init__()
        self._groups = tuple(here)
        self._shows_all = False

    def compose(self) -> ComposeResult:
        """Make the sheet."""
        with VerticalScroll(id="sheet") as sheet:
            sheet.border_title = "Keys"
            yield Static(id="keys")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Lay the keys out."""
        self._show()

    def on_resize(self) -> None:
        """Use two columns where there is room for them."""
        self._show()

    def _show(self) -> None:
        if not self.display:
            return  # It is being left: its parts go one by one, or were never there.
        room = self.app.size.width * 96 // 100 - FRAME_CELLS
        is_wide = room >= 2 * COLUMN_CELLS + COLUMN_GAP
        self.set_class(is_wide, "-two")
        width = COLUMN_CELLS if is_wide else min(COLUMN_CELLS, room)
        groups = [
            (title, tuple(one for one in lines if one.is_offered or self._shows_all)) for title, lines in self._groups
        ]
        blocks = [
            key_block(title, lines, width, self._shows_all, palette(self.app)) for title, lines in groups if lines
        ]
        columns = split(blocks) if is_wide else [blocks]
        self.query_one("#keys", Static).update(side_by_side([Text("\n\n").join(one) for one in columns], width))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to scroll only where there is more than fits."""
        if action == "scroll_lines":
            return any(can_scroll(sheet, parameters[0]) for sheet in self.query("#sheet"))
        return True

    def action_all(self) -> None:
        """Show every key of this place with its id, or only those that work now."""
        self._shows_all = not self._shows_all
        self._show()

    def action_scroll_lines(self, lines: int) -> None:
        """Show what there is no room for."""
        self.query_one("#sheet").scroll_relative(y=lines, animate=False)


def keys_of(screen: Screen[object], title: str) -> list[HelpGroup]:
    """Collect what `screen` answers to: its own keys first, then the app's; what Textual brings along is left out."""
    app = cast("GpuboxApp", screen.app)
    own: dict[tuple[str, bool], HelpLine] = {}
    everywhere: dict[tuple[str, bool], HelpLine] = {}
    for node, binding, is_offered in bindings_here(app, screen):
        text = binding.tooltip or binding.description
        if not text:
            continue
        # The mode that is shown is a mode like the others: its digit belongs into their line.
        is_offered = is_offered or (binding.id or "").startswith("mode.")
        group = everywhere if node is app or (binding.id or "").startswith("screen.") else own
        before = group.get((text, is_offered), HelpLine("", text, (), is_offered))
        keys = " ".join(filter(None, (before.keys, keys_shown(app, node, binding))))
        names = (*before.names, *((binding.id,) if binding.id else ()))
        group[text, is_offered] = HelpLine(keys, text, names, is_offered)
    always = tuple(HelpLine(key, text) for key, text in ALWAYS)
    groups = ((title, tuple(own.values())), (EVERYWHERE, (*everywhere.values(), *always)))
    return [(name, lines) for name, lines in groups if lines]


def key_block(title: str, lines: Sequence[HelpLine], width: int, with_names: bool, colours: Palette) -> Text:
    """Lay one group out in `width` cells; what is not offered now says so, in words and by its shade."""
    block = [Text(title, style=f"bold {colours.accent}")]
    for line in lines:
        is_on = line.is_offered
        said = line.text if is_on else f"{line.text} (not now)"
        names = _short(line.names) if with_names else ""
        room = width - max(KEYS_CELLS, len(line.keys) + 1) - 2 - (len(names) + 1 if names else 0)
        text = Text.assemble(
            (f"  {line.keys:<{KEYS_CELLS - 1}} ", f"bold {colours.primary}" if is_on else colours.dim),
            (f"{fit(said, room):<{max(0, room)}}", colours.text if is_on else colours.dim),
            (f" {names}" if names else "", colours.dim),
        )
        block.append(text)
    return Text("\n").join(block)


def _short(names: Sequence[str]) -> str:
    """Name several ids of one kind by their kind: 'mode.*'."""
    kinds = dict.fromkeys(name.partition(".")[0] for name in names)
    return names[0] if len(names) == 1 else ", ".join(f"{kind}.*" for kind in kinds)


def split(blocks: Sequence[Text]) -> list[list[Text]]:
    """Share blocks between two columns: the first on the left, the rest on the right."""
    return [list(blocks[:1]), list(blocks[1:])]


def side_by_side(columns: Sequence[Text], width: int) -> Text:
    """Put columns of text, each `width` cells, beside each other."""
    if len(columns) == 1:
        return columns[0]
    left, right = (column.split("\n", allow_blank=True) for column in columns)
    lines = []
    for row in range(max(len(left), len(right))):
        line = left[row].copy() if row < len(left) else Text()
        line.pad_right(width + COLUMN_GAP - line.cell_len)
        lines.append(line.append_text(right[row]) if row < len(right) else line)
    return Text("\n").join(lines)
