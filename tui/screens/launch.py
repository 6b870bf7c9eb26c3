"""The launch sheet: which GPUs, which port, which settings, and the exact command that will run."""

from __future__ import annotations

import asyncio
import os
import shlex
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Label, Static

from backends.errors import GpuboxError, UsageError
from backends.snapshots import Box, Gpu, GpuProcess, Missing, Owner, Snapshot, StartRequest
from tui.format import fit, gib, indices, plural, short_gpu_name, shown
from tui.launching import Launchable, LaunchIntent
from tui.themes import MEMORY_LEVELS, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.fit_bar import FitBar
from tui.widgets.gpu_table import memory_ratio
from tui.widgets.live_table import GAP, Column, LiveTable

if TYPE_CHECKING:
    from backends.fit.estimate import Fit
    from tui.app import GpuboxApp

SHEET_CELLS = 100
SHORT_ROWS = 30
"""A lower terminal has less room for the command."""
MEMORY_STEP_BYTES = 256 << 20
"""Whether it fits is reckoned anew when a GPU's free memory has changed by so much."""


class GpuPicker(LiveTable):
    """GPUs to tick; one that cannot be had says why instead."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "screen.tick", "Tick", id="launch.toggle", tooltip="Take this GPU, or leave it"),
        Binding("a", "screen.choose('auto')", "Auto", id="launch.auto", tooltip="Let gpubox choose the freest GPUs"),
        Binding("c", "screen.choose('cpu')", "CPU", id="launch.cpu", tooltip="Serve on the CPU"),
        Binding("enter", "screen.start", "Start", show=False),
    ]


class LaunchScreen(ModalScreen[StartRequest | None]):
    """Ends with the request to start, or with None."""

    CSS_PATH = "../styles/launch.tcss"
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "start", "Start", key_display="enter", id="launch.start"),
        Binding("escape", "dismiss(None)", "Leave", id="launch.leave"),
    ]

    def __init__(self, launchable: Launchable) -> None:
        super().__init__()
        self._launchable = launchable
        self._ticked: set[str] = set()
        self._rest = "cpu" if launchable.profile.gpus == "cpu" else "auto"
        self._reckoned: object = None

    @property
    def gpubox(self) -> GpuboxApp:
        """The app, with its own type."""
        return cast("GpuboxApp", self.app)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title = f"Start {self._launchable.profile.name}"
            yield Static(id="what")
            yield GpuPicker()
            yield Static(id="chosen")
            yield FitBar()
            with Horizontal(classes="field"):
                yield Label("Port")
                yield Input(placeholder=str(self._launchable.profile.port), id="port", compact=True)
            with Horizontal(classes="field"):
                yield Label("Set")
                yield Input(placeholder="max_model_len=4096 gpu_memory_utilization=0.8 …", id="sets", compact=True)
            with VerticalScroll(id="run", can_focus=False):
                yield Static(id="command")
        yield Footer()

    def on_mount(self) -> None:
        """Follow the box's memory while the sheet is open."""
        picker = self.query_one(GpuPicker)
        picker.display = bool(self._gpus)
        if not self._gpus:
            self._rest = "cpu"
            self.query_one("#port").focus()
        else:
            picker.focus()
        self.watch(self.app, "snapshot", self._follow)
        if (free := next((gpu.uuid for gpu in self._gpus if self._why_not(gpu) is None), None)) is not None:
            picker.select(free)

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self.set_class(self.app.size.height < SHORT_ROWS, "short")
        self._reckoned = None
        self._follow()

    @property
    def _gpus(self) -> tuple[Gpu, ...]:
        snapshot: Snapshot | None = self.gpubox.snapshot
        return snapshot.box.gpus if snapshot else ()

    @property
    def _width(self) -> int:
        return min(SHEET_CELLS, self.app.size.width) - 4

    def _follow(self) -> None:
        colours, width = palette(self.app), self._width
        profile = self._launchable.profile
        needs = "no GPU" if profile.gpus == "cpu" else plural(profile.gpus, "GPU")
        what = Text(f"{profile.engine} · {profile.model} · needs {needs}", style=colours.dim)
        what.truncate(width, overflow="ellipsis")
        self.query_one("#what", Static).update(what)
        name = max((len(short_gpu_name(gpu.name)) for gpu in self._gpus), default=4)
        name = min(name, 20)
        rest = width - 3 - 2 - name - 12 - 11 - 5 * GAP
        columns = (
            Column("", 3),
            Column("#", 2, "right"),
            Column("GPU", name),
            Column("", 12),
            Column("Free, GiB", 11, "right"),
            Column("", rest),
        )
        rows = {gpu.uuid: self._row(gpu, rest, colours) for gpu in self._gpus}
        self.query_one(GpuPicker).show(columns, rows)
        self._show_choice()

    def _row(self, gpu: Gpu, width: int, colours: Palette) -> tuple[Text, ...]:
        refused = self._why_not(gpu)
        if refused is not None:
            box, note = Text(" ⊘ ", style=colours.dim), Text(fit(refused, width), style=colours.dim)
        else:
            ticked = gpu.uuid in self._ticked
            box = Text("[x]" if ticked else "[ ]", style=f"bold {colours.accent}" if ticked else colours.text)
            note = Text(fit(_company(gpu), width), style=colours.warn)
        ratio = memory_ratio(gpu)
        quiet = colours.dim if refused is not None else colours.text
        return (
            box,
            Text(str(gpu.index), style=f"bold {quiet}"),
            Text(short_gpu_name(gpu.name), style=quiet),
            bar(ratio, 12, colours.level(ratio, MEMORY_LEVELS), colours.faint),
            Text.assemble(
                (shown(gpu.memory_free_bytes, gib), quiet), (f"/{shown(gpu.memory_total_bytes, gib)}", colours.dim)
            ),
            note,
        )

    def _why_not(self, gpu: Gpu) -> str | None:
        return why_not(gpu, share=self._launchable.profile.share)

    def _chosen(self) -> tuple[str, ...]:
        ticked = tuple(str(gpu.index) for gpu in self._gpus if gpu.uuid in self._ticked)
        return ticked or (self._rest,)

    @on(Input.Changed)
    def _show_choice(self) -> None:
        colours = palette(self.app)
        command = self.query_one("#command", Static)
        try:
            intent = self._intent()
            needed = self._launchable.needed(intent)
            command.update(Text("$ " + self._launchable.command(intent), style=colours.text))
        except GpuboxError as problem:
            command.update(Text(f"✗ {problem.message}\n{problem.hint}".rstrip(), style=colours.bad))
            return
        self.query_one("#chosen", Static).update(chosen_line(self._chosen(), needed, bool(self._gpus), colours))
        self._show_fit(intent, needed)

    def _show_fit(self, intent: LaunchIntent, needed: int) -> None:
        """Reckon in a thread whether it fits; not again while nothing that counts has changed."""
        snapshot: Snapshot | None = self.gpubox.snapshot
        if snapshot is None:
            return
        chosen = intent.gpus or ("auto",)
        if chosen not in (("auto",), ("cpu",)) and len(chosen) != needed:
            self._reckoned = None
            self.workers.cancel_group(self, "fit")
            self.query_one(FitBar).show(
                f"tick {plural(needed, 'GPU')} to see whether it fits", self._width, palette(self.app)
            )
            return
        memory = tuple((gpu.uuid, self._why_not(gpu), _steps(gpu.memory_free_bytes)) for gpu in self._gpus)
        if (state := (chosen, intent.sets, memory)) != self._reckoned:
            self._reckoned = state
            self.run_worker(self._reckon(intent, chosen, snapshot.box), name="fit", group="fit", exclusive=True)

    async def _reckon(self, intent: LaunchIntent, chosen: tuple[str, ...], box: Box) -> None:
        try:
            told = await asyncio.to_thread(_fit, self._launchable, intent, chosen, box)
        except GpuboxError as problem:
            told = problem.message
        self.query_one(FitBar).show(told, self._width, palette(self.app))

    def _intent(self) -> LaunchIntent:
        port_text = self.query_one("#port", Input).value.strip()
        sets_text = self.query_one("#sets", Input).value
        if port_text and port_text != "auto" and not (port_text.isdecimal() and 0 < int(port_text) < 65536):
            raise UsageError(f"{port_text!r} is not a port", "a number of 1–65535, or auto")
        try:
            sets = tuple(shlex.split(sets_text))
        except ValueError as problem:
            raise UsageError(f"the settings cannot be read: {problem}", "KEY=VALUE, quotes around spaces") from None
        port = None if not port_text else 0 if port_text == "auto" else int(port_text)
        return LaunchIntent(self._launchable.profile.name, gpus=self._chosen(), port=port, sets=sets)

    @on(DataTable.RowSelected)
    def action_tick(self) -> None:
        """Take the GPU under the cursor, or leave it."""
        uuid = self.query_one(GpuPicker).cursor_key
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)
        if gpu is None:
            return
        if refused := self._why_not(gpu):
            self.notify(refused, title=f"GPU {gpu.index} cannot be taken", severity="warning", markup=False)
            return
        self._ticked ^= {gpu.uuid}
        self._follow()

    def action_choose(self, rest: str) -> None:
        """Tick nothing: `auto` or `cpu`."""
        self._ticked.clear()
        self._rest = rest
        self._follow()

    @on(Input.Submitted)
    def action_start(self) -> None:
        """End with the request."""
        try:
            self.dismiss(self._launchable.request(self._intent()))
        except GpuboxError as problem:
            self.gpubox.complain(problem)


def _fit(launchable: Launchable, intent: LaunchIntent, chosen: tuple[str, ...], box: Box) -> Fit | str:
    """Reckon how a launch fits; reads the model's headers, so not for the UI's own thread."""
    from backends.fit.checkpoint import read_checkpoint
    from backends.fit.choices import fit_here

    profile, _ = launchable.merged(intent)
    return fit_here(profile, box, chosen, os.environ, read_checkpoint(profile, os.environ))


def _steps(free_bytes: int | Missing) -> int | None:
    return None if isinstance(free_bytes, Missing) else free_bytes // MEMORY_STEP_BYTES


def chosen_line(chosen: tuple[str, ...], needed: int, has_gpus: bool, colours: Palette) -> Text:
    """Say what the server will run on, and what is odd about it."""
    if chosen == ("cpu",):
        why = "" if has_gpus else ": this box has no GPU"
        return Text(f"on the CPU{why}", style=f"bold {colours.accent}")
    if chosen == ("auto",):
        return Text(f"auto: gpubox takes the freest {plural(max(1, needed), 'GPU')}", style=f"bold {colours.accent}")
    text = Text(f"GPU {indices(int(index) for index in chosen)}", style=f"bold {colours.accent}")
    if len(chosen) != needed:
        text.append(f"   the profile takes {needed}, {len(chosen)} ticked", colours.warn)
    return text


def why_not(gpu: Gpu, *, share: bool = False) -> str | None:
    """Say why a GPU cannot be assigned, if so; to a profile that shares, one can be whose servers share, too."""
    if gpu.refusal is not None:
        return gpu.refusal
    if gpu.holder is None or (share and all(grant.memory_bytes is not None for grant in gpu.grants)):
        return None
    return f"held by {gpu.holder}"


def _named(process: GpuProcess) -> str:
    if process.owner is Owner.ORPHAN:
        return f"an orphan of {process.server}"
    return f"{process.command} of {process.user}"


def _company(gpu: Gpu) -> str:
    if isinstance(gpu.processes, Missing):
        return gpu.processes.reason
    beside = [f"shared with {gpu.holder}"] if gpu.holder is not None else []
    beside += [_named(process) for process in gpu.processes if not process.is_ours]
    return "▲ " + ", ".join(beside) if beside else ""
