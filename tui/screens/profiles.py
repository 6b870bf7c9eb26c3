"""The profiles: what could be served and by which command; edited here, and checked as they are typed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import DataTable, Static

from backends.fit.estimate import Fit
from backends.snapshots import Box, Server, Snapshot
from profiles.schema import Profile
from tui.format import fit_path
from tui.launching import fit_of, memory_state
from tui.screens.base import ROOMY_LINES, WIDE_CELLS
from tui.screens.profile_editing import EditActions
from tui.themes import palette
from tui.widgets.live_text import can_scroll
from tui.widgets.profile_editor import ProfileEditor
from tui.widgets.profile_side import look_at, look_at_file, problems_text, side_text
from tui.widgets.profile_table import ProfileTable

LIST_CELLS = 44
SIDE_PART = 0.36
"""Of the width of a wide screen."""
PAUSE_S = 0.15
"""So long nothing must be typed before the text is checked."""
PROBLEM_LINES = 4
NO_PROFILES = "No profile here. {new} makes one from a template, {paste} one from a command line such as vllm serve …"
EDITING = frozenset({"save", "save_and_launch", "leave", "problem"})
OF_A_ROW = frozenset({"launch", "start", "edit", "duplicate"})
OF_ONES_OWN = frozenset({"rename", "remove"})


class ProfilesScreen(EditActions):
    """All profiles; Enter opens the launch sheet, `o` the editor."""

    CSS_PATH = "../styles/profiles.tcss"
    AUTO_FOCUS = "ProfileTable"
    CHANGES = frozenset(
        {"launch", "start", "edit", "new", "import", "duplicate", "rename", "remove", "save", "save_and_launch"}
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "edit", "Edit", id="profile.edit", tooltip="Edit its TOML, checked as you type"),
        Binding("n", "new", "New", id="profile.new", tooltip="Make one from a template, or a blank one"),
        Binding("p", "import", "Import", id="profile.import", tooltip="Paste a command line: vllm serve …"),
        Binding("v", "compare", "Diff", id="profile.compare", tooltip="Against what its servers were started with"),
        Binding("c", "duplicate", "Copy", show=False, id="profile.copy", tooltip="Edit a copy under another name"),
        Binding("r", "rename", "Rename", show=False, id="profile.rename", tooltip="Give it another name"),
        Binding("d,delete", "remove", "Delete", show=False, id="profile.delete", tooltip="Delete its file"),
        Binding("ctrl+s", "save", "Save", id="editor.save", tooltip="Save it: whole, or not at all"),
        Binding("ctrl+r", "save_and_launch", "Start …", id="editor.start", tooltip="Save it, and open the start sheet"),
        Binding("ctrl+t", "compare", "Diff", id="editor.compare", tooltip="Against the file, and what runs"),
        Binding("ctrl+g", "problem", "Problem", id="editor.problem", tooltip="Go to the next line with a problem"),
        Binding("escape", "leave", "Leave", id="editor.leave", tooltip="Back to the list; asks if not saved"),
        Binding("ctrl+down", "scroll(1)", "Down", show=False, id="profile.down", tooltip="Scroll what is beside it"),
        Binding("ctrl+up", "scroll(-1)", "Up", show=False, id="profile.up", tooltip="Scroll what is beside it"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pause: Timer | None = None
        self._fit: Fit | str | None = None
        self._reckoned: tuple[object, object] | None = None
        self._offered: object = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="list", classes="panel"):
            yield ProfileTable()
            keys = {"new": self.key_of("profile.new"), "paste": self.key_of("profile.import")}
            yield Static(NO_PROFILES.format(**keys), id="no-profiles", markup=False)
        with Vertical(id="text", classes="panel"):
            yield ProfileEditor()
            yield Static(id="problems")
        with VerticalScroll(id="side", classes="panel", can_focus=False) as side:
            side.border_title = "What will run"
            yield Static(id="reckoned")

    def on_mount(self) -> None:
        """The text is there to be read at first."""
        self.editor.can_focus = False

    def on_screen_resume(self) -> None:
        """Read the profiles again: somebody may have edited one."""
        self.read()

    def read(self, select: str | None = None) -> None:
        """Read the profiles again, and put the cursor on one."""
        self._read(select)

    @work(group="profiles", exclusive=True)
    async def _read(self, select: str | None) -> None:
        self.profiles = await self.gpubox.profile_rows()
        self._changed()
        if select is not None:
            self.query_one(ProfileTable).select(select)
        self.look_again()

    @on(ProfileEditor.Changed)
    def _typed(self) -> None:
        if self.draft is not None:
            if self._pause is not None:
                self._pause.stop()
            self._pause = self.set_timer(PAUSE_S, self.look_again)
            self._changed()

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        if self.draft is None:
            self.look_again()

    @on(DataTable.RowSelected)
    def _clicked(self) -> None:
        if self.check_action("launch", ()):
            self.action_launch()

    def look_again(self) -> None:
        """Check what is written, or read what the cursor is on; both in a thread."""
        self._look()

    @work(group="look", exclusive=True)
    async def _look(self) -> None:
        draft, row = self.draft, self.row
        if draft is not None:
            self.look = await asyncio.to_thread(look_at, draft.name, self.editor.text, draft.path)
        elif row is not None:
            self.look = await asyncio.to_thread(look_at_file, row.name, Path(row.path))
            self.editor.show_text(self.look.text)
        else:
            self.look = None
            self.editor.show_text("")
        checked = self.look.checked if self.look else None
        marks = {one.line: False for one in checked.warnings if one.line} if checked else {}
        self.editor.mark(marks | ({one.line: True for one in checked.problems if one.line} if checked else {}))
        self._changed()

    def _reckon_if_changed(self, snapshot: Snapshot) -> None:
        """Reckon anew whether it fits when the profile or the GPUs' free memory has changed."""
        look = self.look
        what, room = look and (look.name, look.text), memory_state(snapshot.box)
        if (what, room) == self._reckoned:
            return
        if self._reckoned is None or what != self._reckoned[0]:
            # Also where nothing is reckoned instead: the verdict of another text must not come in late.
            self.workers.cancel_group(self, "fit")
            self._fit = None
        self._reckoned = what, room
        if look is not None and look.checked.profile is not None:
            self._reckon(look.checked.profile, snapshot.box)

    @work(group="fit", exclusive=True)
    async def _reckon(self, profile: Profile, box: Box) -> None:
        chosen = ("cpu",) if profile.gpus == "cpu" or not box.gpus else ("auto",)
        self._fit = await asyncio.to_thread(fit_of, profile, box, chosen)
        self._changed()

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the list, the text's state, and what it comes to."""
        size, colours = self.app.size, palette(self.app)
        is_wide, is_roomy = size.width >= WIDE_CELLS, size.height >= ROOMY_LINES
        table = self.query_one(ProfileTable)
        table.follow(self.profiles, (LIST_CELLS if is_wide else size.width - self.scrollbar_size_vertical) - 2)
        self.set_class(not self.profiles, "-no-profiles")
        broken = sum(row.problem is not None for row in self.profiles)
        title = f"Profiles · {len(self.profiles)}" if self.profiles else "Profiles"
        self.query_one("#list").border_title = title + (f", {broken} broken" if broken else "")
        side_cells = int(size.width * SIDE_PART) - 4 if is_wide else size.width - 3
        self._reckon_if_changed(snapshot)
        self.query_one("#text").border_title = self._text_title(size.width - LIST_CELLS if is_wide else size.width)
        problems = self.query_one("#problems", Static)
        problems.display = self.draft is not None
        told = Text()
        if self.look is not None:
            editing = self.draft is not None
            brief = editing and not is_wide
            told = side_text(self.look, self._fit, snapshot.servers, side_cells, colours, editing=editing, brief=brief)
            if not is_wide and not is_roomy and self.draft is None:
                told.append_text(Text(f"\n\n{self.look.text.rstrip()}", style=colours.dim))
            problems.update(problems_text(self.look.checked, PROBLEM_LINES, colours))
        self.query_one("#reckoned", Static).update(told)
        offered = (self.draft is not None, self.is_unsaved, self.row, bool(self._problem_lines))
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _text_title(self, width: int) -> str:
        draft = self.draft
        if draft is None:
            return fit_path(self.row.path, width // 2) if self.row else ""
        state = "not saved" if not draft.is_saved else "changed" if self.is_unsaved else "saved"
        if draft.is_saved and draft.source and draft.digest is None:
            state = f"{state}, your own copy once saved" if self.is_unsaved else f"of {draft.source}"
        return f"{fit_path(str(draft.path), width // 2)} · {state}"

    @property
    def _problem_lines(self) -> tuple[int, ...]:
        checked = self.look.checked if self.look else None
        return tuple(one.line for one in (*checked.problems, *checked.warnings) if one.line) if checked else ()

    def explained(self) -> tuple[str, ...]:
        """Return what the figures of the verdict mean."""
        return ("fit", "weights", "kv_cache", "memory_free_bytes", "max_model_len") if self.draft is None else ()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what goes with the list, or what goes with the editor."""
        if not super().check_action(action, parameters):
            return False
        if action == "scroll":
            return can_scroll(self._beside, parameters[0])
        if action in EDITING:
            if self.draft is None:
                return False
            return {"save": self.is_unsaved or self.draft.digest is None, "problem": bool(self._problem_lines)}.get(
                action, True
            )
        if action in OF_A_ROW | OF_ONES_OWN | {"new", "import", "compare"}:
            return self._offers_of_the_list(action)
        return True

    def _offers_of_the_list(self, action: str) -> bool:
        if action == "compare":
            return self.look is not None
        if self.draft is not None or action in ("new", "import"):
            return self.draft is None
        row = self.row
        return row is not None and (action not in OF_ONES_OWN or row.origin != "library")

    def action_launch(self) -> None:
        """Open the launch sheet for the profile under the cursor; a broken one is edited."""
        if (row := self.row) is None or self.draft is not None:
            return
        if row.problem is not None:
            self.action_edit()
        else:
            self.gpubox.action_launch(row.name)

    def action_start(self) -> None:
        """Have the profile under the cursor serve as it is; what is in its way gives way."""
        if (row := self.row) is not None:
            self.gpubox.switch_to(row.name, is_profile=True)

    def action_scroll(self, lines: int) -> None:
        """Show what there is no room for: of the text where it stands beside, else of what will run."""
        self._beside.scroll_relative(y=lines, animate=False)

    @property
    def _beside(self) -> Widget:
        return self.editor if self.draft is None and self.query_one("#text").display else self.query_one("#side")
