"""What the profiles screen does to profiles: edit, save, make, import, rename, delete, compare."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from textual import work

from backends.diagnosis.masking import masked
from backends.errors import GpuboxError, ProfileError
from profiles.drafts import ChangedOnDiskError, Draft, against_start, new_draft, open_draft, save, unified
from profiles.errors import InvalidProfileError
from profiles.store import LIBRARY, Store
from tui.launching import told
from tui.screens.base import GpuboxScreen
from tui.screens.confirm import ConfirmScreen
from tui.screens.profile_choice import Answer, ChoiceScreen
from tui.screens.profile_diff import Difference, DiffScreen
from tui.screens.profile_import import ImportScreen
from tui.screens.profile_name import NameScreen, free_name
from tui.widgets.profile_editor import ProfileEditor
from tui.widgets.profile_side import Look, look_at
from tui.widgets.profile_table import ProfileRow, ProfileTable

Result = TypeVar("Result")

UNSAVED = (
    Answer("s", "save", "save it, and leave"),
    Answer("d", "discard", "discard what was changed"),
    Answer("k", "keep", "keep editing"),
)


class EditActions(GpuboxScreen):
    """The part of the profiles screen that writes files; `draft` is what is being edited, None while nothing is."""

    profiles: tuple[ProfileRow, ...] = ()
    draft: Draft | None = None
    look: Look | None = None

    def read(self, select: str | None = None) -> None:
        """Read the profiles again, and put the cursor on one."""
        raise TypeError(f"{type(self).__name__} must read its profiles")

    def look_again(self) -> None:
        """Look anew at what is shown or written."""
        raise TypeError(f"{type(self).__name__} must look at what it shows")

    @property
    def row(self) -> ProfileRow | None:
        """The profile under the cursor."""
        name = self.query_one(ProfileTable).cursor_key
        return next((row for row in self.profiles if row.name == name), None)

    @property
    def editor(self) -> ProfileEditor:
        """The text field."""
        return self.query_one(ProfileEditor)

    @property
    def is_unsaved(self) -> bool:
        """Whether something was written that no file has."""
        return self.draft is not None and (not self.draft.is_saved or self.editor.text != self.draft.text)

    @property
    def store(self) -> Store:
        """The profiles' store; raises ProfileError where there is none."""
        if self.gpubox.store is None:
            raise ProfileError("there are no profiles here")
        return self.gpubox.store

    async def attempt(self, call: Callable[..., Result], *given: object) -> Result | None:
        """Call in a thread with the store; a refusal becomes one line on screen, and None."""

        def run() -> Result:
            with told():
                return call(self.store, *given)

        try:
            return await asyncio.to_thread(run)
        except GpuboxError as problem:
            self.gpubox.complain(problem)
            return None

    def begin(self, draft: Draft, line: int | None = None) -> None:
        """Edit a draft, with the cursor on a line."""
        self.editor.edit_text(draft.text)
        # The field may end lines in another way than the file did: that is no change of anybody's.
        self.draft = replace(draft, text=self.editor.text)
        self.query_one(ProfileTable).disabled = True
        self.add_class("-editing")
        self.editor.can_focus = True
        self.editor.focus()
        if line is not None:
            self.editor.go_to(line)
        self.look_again()
        self.refresh_bindings()

    def leave(self) -> None:
        """Go back to the list; what is in the editor is gone."""
        name = self.draft.name if self.draft else None
        self.draft = None
        table = self.query_one(ProfileTable)
        table.disabled = False
        self.remove_class("-editing")
        self.editor.show_text("")
        self.editor.can_focus = False
        table.focus()
        self.read(name)
        self.refresh_bindings()

    @work(group="editing", exclusive=True)
    async def action_edit(self) -> None:
        """Edit the profile under the cursor; one of the library becomes one's own once it is saved."""
        if (row := self.row) is not None and (draft := await self.attempt(open_draft, row.name)) is not None:
            look = await asyncio.to_thread(look_at, draft.name, draft.text, draft.path)
            problems = look.checked.problems
            self.begin(draft, problems[0].line if problems else None)

    @work(group="editing", exclusive=True)
    async def action_new(self) -> None:
        """Begin a profile from another one or from nothing."""
        row = self.row
        name = free_name(row.name if row else "new", self.profiles)
        sheet = NameScreen("New profile", name, self.profiles, template=row.name if row else None, choose=True)
        if (chosen := await self.app.push_screen_wait(sheet)) is not None:
            await self._begin_new(chosen.name, chosen.template)

    @work(group="editing", exclusive=True)
    async def action_duplicate(self) -> None:
        """Begin a profile as a copy of the one under the cursor."""
        if (row := self.row) is not None:
            name = free_name(row.name, self.profiles)
            sheet = NameScreen(f"Copy {row.name}", name, self.profiles, template=row.name)
            if (chosen := await self.app.push_screen_wait(sheet)) is not None:
                await self._begin_new(chosen.name, chosen.template)

    async def _begin_new(self, name: str, template: str | None, toml: str | None = None) -> None:
        draft = await self.attempt(new_draft, name, template)
        if draft is not None:
            self.begin(draft if toml is None else replace(draft, text=toml, source="a command line"))

    @work(group="editing", exclusive=True)
    async def action_import(self) -> None:
        """Begin a profile from a command line."""
        understood = await self.app.push_screen_wait(ImportScreen(self.profiles))
        if understood is not None:
            sheet = NameScreen("Name the profile", free_name(understood.name, self.profiles), self.profiles)
            if (chosen := await self.app.push_screen_wait(sheet)) is not None:
                await self._begin_new(chosen.name, None, understood.toml)

    @work(group="editing", exclusive=True)
    async def action_rename(self) -> None:
        """Give the profile under the cursor another name."""
        if (row := self.row) is not None:
            chosen = await self.app.push_screen_wait(NameScreen(f"Rename {row.name}", row.name, self.profiles))
            if chosen is not None and await self.attempt(Store.rename, row.name, chosen.name) is not None:
                self.read(chosen.name)

    @work(group="editing", exclusive=True)
    async def action_remove(self) -> None:
        """Delete the file of the profile under the cursor, after a question."""
        if (row := self.row) is not None:
            text = f"{row.path} goes for good. Servers of it keep running."
            if await self.app.push_screen_wait(ConfirmScreen(f"Delete {row.name}?", text, "Delete")):
                await self.attempt(Store.remove, row.name)
                self.read()

    @work(group="saving", exclusive=True)
    async def action_save(self) -> None:
        """Save what is being edited."""
        await self._save()

    @work(group="saving", exclusive=True)
    async def action_save_and_launch(self) -> None:
        """Save what is being edited where it is not yet, and open the launch sheet."""
        if (draft := self.draft) is not None and (not self.is_unsaved or await self._save()):
            self.gpubox.action_launch(draft.name)

    @work(group="saving", exclusive=True)
    async def action_leave(self) -> None:
        """Leave the editor; asks where something is not saved."""
        answer: str | None = "discard"
        if self.is_unsaved and self.draft is not None:
            text = f"{self.draft.name}.toml has changes that no file has yet."
            answer = await self.app.push_screen_wait(ChoiceScreen("Leave the editor?", text, UNSAVED))
        if answer == "discard" or (answer == "save" and await self._save()):
            self.leave()

    async def _save(self, *, overwrite: bool = False) -> bool:
        """Write the draft; returns whether what is in the editor is in the file now."""
        draft, text = self.draft, self.editor.text
        if draft is None:
            return False

        def run() -> Draft:
            with told():
                return save(self.store, draft, text, overwrite=overwrite)

        try:
            saved = await asyncio.to_thread(run)
        except ChangedOnDiskError as changed:
            return await self._settle(draft, text, changed)
        except GpuboxError as problem:
            self._refuse(problem)
            return False
        self.draft = saved
        self.notify(str(saved.path), title="saved", timeout=3, markup=False)
        self.read(saved.name)
        self.look_again()
        return True

    def _refuse(self, problem: GpuboxError) -> None:
        """Say why it is not saved, with the cursor on the line."""
        cause = problem.__cause__
        if isinstance(cause, InvalidProfileError):
            first = cause.problems[0]
            where = " ".join(part for part in (f"line {first.line}" if first.line else "", first.where) if part)
            problem = ProfileError(f"not saved: {f'{where} ' if where else ''}{first.message}", first.suggestion)
            if first.line:
                self.editor.go_to(first.line)
        self.gpubox.complain(problem)

    async def _settle(self, draft: Draft, text: str, changed: ChangedOnDiskError) -> bool:
        """Ask what shall become of a file that somebody else has changed since it was opened."""
        theirs = changed.text
        answers = [
            Answer("o", "overwrite", "overwrite it with what is written here"),
            *(
                [
                    Answer("d", "diff", "show the difference first"),
                    Answer("r", "reload", "reload it: what is written here is lost"),
                ]
                if theirs is not None
                else []
            ),
            Answer("k", "keep", "keep editing, save nothing"),
        ]
        while True:
            told_why = f"{changed}. Nothing is saved yet."
            answer = await self.app.push_screen_wait(ChoiceScreen("Not as it was opened", told_why, answers))
            if answer == "diff" and theirs is not None:
                diff = masked(unified(theirs, text, "on disk", "here"))
                await self.app.push_screen_wait(DiffScreen(draft.name, [Difference("on disk → here", diff)]))
            elif answer == "overwrite":
                return await self._save(overwrite=True)
            elif answer == "reload":
                fresh = await self.attempt(open_draft, draft.name)
                if fresh is not None:
                    self.begin(fresh)
                return False
            else:
                return False

    @work(group="comparing", exclusive=True)
    async def action_compare(self) -> None:
        """Show how the text differs from the file on disk, and from what the profile's servers were started with."""
        draft = self.draft
        if draft is not None:
            look = await asyncio.to_thread(look_at, draft.name, self.editor.text, draft.path)
        elif self.look is not None and (row := self.row) is not None and row.name == self.look.name:
            look = self.look
        else:
            return
        found = await asyncio.to_thread(_against_files, look, draft)
        profile = look.checked.profile
        for server in self.gpubox.servers:
            if profile is None or server.profile != look.name or server.foreign is not None:
                continue
            try:
                started = await self.gpubox.link.profile(server.name)
            except GpuboxError as problem:
                self.gpubox.complain(problem)
                continue
            diff = masked(against_start(look.text, look.checked.data, started, server.name, look.name))
            found.append(Difference(f"what {server.name} was started with → the profile", diff))
        if found:
            self.app.push_screen(DiffScreen(f"Differences of {look.name}", found))
        else:
            text = "no server was started from it, and it hides no profile of the library"
            self.notify(text, title=f"nothing to compare {look.name} with", markup=False)

    def action_problem(self) -> None:
        """Put the cursor on the next line that has a problem."""
        checked = self.look.checked if self.look else None
        lines = sorted({one.line for one in (*checked.problems, *checked.warnings) if one.line}) if checked else []
        if lines:
            at = self.editor.cursor_location[0] + 1
            self.editor.go_to(next((line for line in lines if line > at), lines[0]))


def _against_files(look: Look, draft: Draft | None) -> list[Difference]:
    """Compare a text with the file that it would be written over, or a profile of one's own with the library's."""
    library = LIBRARY / f"{look.name}.toml"
    if draft is not None and draft.path.exists():
        before = _text_of(draft.path)
        return [Difference("on disk → here", masked(unified(before, look.text, "on disk", "here")))]
    if library.exists() and (draft is not None or look.text != _text_of(library)):
        diff = masked(unified(_text_of(library), look.text, "library", "yours"))
        return [Difference("the library's → yours", diff)]
    return []


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
