"""The launch sheet: which GPUs, which port, which settings, and the exact command that will run."""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import DataTable, Input, Label, Static

from backends.errors import GpuboxError, UsageError
from backends.fit.estimate import Fit
from backends.snapshots import Box, Gpu, Server, Snapshot, StartRequest
from profiles.arguments import lint
from profiles.drafts import argument_names, completion
from profiles.schema import NAME
from tui.format import fit, gib, plural, short_gpu_name, shown
from tui.keymap import key_of
from tui.launching import Launchable, LaunchIntent, fit_of, memory_state
from tui.screens.explain import ExplainScreen
from tui.themes import MEMORY_LEVELS, Palette, palette
from tui.widgets.bars import bar
from tui.widgets.fit_bar import FitBar
from tui.widgets.gpu_table import memory_ratio
from tui.widgets.key_footer import KeyFooter
from tui.widgets.launch_lines import chosen_line, company, sleep_line, why_not
from tui.widgets.live_table import GAP, Column, LiveTable

if TYPE_CHECKING:
    from tui.app import GpuboxApp

SHEET_CELLS = 100
PORT_CELLS = 24
"""What is left to the port beside what sleep costs."""
SHORT_ROWS = 30
"""A lower terminal has less room for the command."""
_ENVIRON = re.compile(r"[A-Z][A-Z0-9_]*=")
"""A setting whose name is in capitals is an environment variable: engines' arguments never are."""


class SettingSuggester(Suggester):
    """Completes the name of an engine's argument in the last word that is typed."""

    def __init__(self, engine: str) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._known = argument_names(engine)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the text with its last name completed."""
        word = value.rpartition(" ")[2]
        rest = "" if "=" in word else completion(word.lstrip("-").replace("-", "_"), self._known)
        return f"{value}{rest}=" if rest else None


class GpuPicker(LiveTable):
    """GPUs to tick; one that cannot be had says why instead."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "screen.tick", "Tick", id="launch.toggle", tooltip="Take this GPU, or leave it"),
        Binding("a", "screen.choose('auto')", "Auto", id="launch.auto", tooltip="Let gpubox choose the freest GPUs"),
        Binding("c", "screen.choose('cpu')", "CPU", id="launch.cpu", tooltip="Serve on the CPU"),
        Binding("z", "screen.sleep", "Sleep", id="launch.sleep", tooltip="Let it give way asleep, or not"),
        Binding("Z", "screen.asleep", "Asleep", show=False, id="launch.asleep", tooltip="Start it as a warm spare"),
        Binding("enter", "screen.start", "Start", show=False, id="launch.begin", tooltip="Start on what is ticked"),
        Binding("i", "screen.explain", "Explain", show=False, id="launch.explain", tooltip="What the figures mean"),
    ]


class LaunchScreen(ModalScreen[StartRequest | None]):
    """Ends with the request to start, or with None."""

    CSS_PATH = "../styles/launch.tcss"
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "start", "Start", key_display="enter", id="launch.start", tooltip="Start it as it says here"),
        Binding("escape", "dismiss(None)", "Leave", id="launch.leave", tooltip="Start nothing"),
    ]

    def __init__(self, launchable: Launchable) -> None:
        super().__init__()
        self._launchable = launchable
        self._ticked: set[str] = set()
        self._rest = "cpu" if launchable.profile.gpus == "cpu" else "auto"
        self._reckoned: object = None
        self._sleeps = launchable.profile.sleep
        self._asleep = False
        self._fit: Fit | str = ""
        self._servers: tuple[Server, ...] = ()

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
                yield Input(id="port", compact=True)
                yield Static(id="sleep", markup=False)
            with Horizontal(classes="field"):
                yield Label("Set")
                yield Input(
                    placeholder="max_model_len=4096 NCCL_DEBUG=INFO …",
                    id="sets",
                    compact=True,
                    suggester=SettingSuggester(self._launchable.profile.engine),
                )
                yield Label("Name", classes="second")
                yield Input(id="name", compact=True)
            with VerticalScroll(id="run", can_focus=False):
                yield Static(id="command")
        yield KeyFooter()

    def on_mount(self) -> None:
        """Follow the box's memory while the sheet is open."""
        if not self.display:
            return  # It is left already, before it had parts.
        picker = self.query_one(GpuPicker)
        self._servers = self.gpubox.servers
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
        if not self.display:
            return  # It is being left: its parts go one by one.
        colours, width = palette(self.app), self._width
        profile = self._launchable.profile
        self._servers = tuple(server for server in self.gpubox.servers if server.is_live)
        # What somebody else has taken meanwhile is ticked no more.
        self._ticked &= {gpu.uuid for gpu in self._gpus if self._why_not(gpu) is None}
        self.query_one("#port", Input).placeholder = self._default_port()[1]
        self.query_one("#name", Input).placeholder = self._default_name() or profile.name
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
            note = Text(fit(company(gpu), width), style=colours.warn)
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
        return why_not(gpu, share=self._launchable.profile.share or self._sleeps)

    def _chosen(self) -> tuple[str, ...]:
        ticked = tuple(str(gpu.index) for gpu in self._gpus if gpu.uuid in self._ticked)
        return ticked or (self._rest,)

    @on(Input.Changed)
    def _show_choice(self) -> None:
        if not self.display:
            return
        colours = palette(self.app)
        command = self.query_one("#command", Static)
        try:
            intent = self._intent()
            needed = self._launchable.needed(intent)
            lines = [Text(f"▲ {one}", style=colours.warn) for one in self._warnings(intent)]
            lines.append(Text("$ " + self._launchable.command(intent), style=colours.text))
            command.update(Text("\n").join(lines))
        except GpuboxError as problem:
            command.update(Text(f"✗ {problem.message}\n{problem.hint}".rstrip(), style=colours.bad))
            return
        self.query_one("#chosen", Static).update(chosen_line(self._chosen(), needed, bool(self._gpus), colours))
        self._show_fit(intent, needed)
        self._show_sleep()

    @property
    def _may_sleep(self) -> bool:
        """Whether its engine could: vLLM on GPUs."""
        return self._launchable.profile.engine == "vllm" and self._chosen() != ("cpu",)

    def _show_sleep(self) -> None:
        part = self.query_one("#sleep", Static)
        part.display = self._may_sleep
        if part.display:
            keys = key_of(self.app, "launch.sleep"), key_of(self.app, "launch.asleep")
            host = self.gpubox.snapshot.box.host if self.gpubox.snapshot else None
            fit = self._fit if isinstance(self._fit, Fit) else None
            room = self._width - PORT_CELLS
            text = sleep_line(
                fit, host, keys, room, sleeps=self._sleeps, asleep=self._asleep, colours=palette(self.app)
            )
            part.update(text)

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
        held = tuple((gpu.uuid, self._why_not(gpu)) for gpu in self._gpus)
        memory = (held, memory_state(snapshot.box))
        if (state := (chosen, intent.sets, intent.sleep, memory)) != self._reckoned:
            self._reckoned = state
            self.run_worker(self._reckon(intent, chosen, snapshot.box), name="fit", group="fit", exclusive=True)

    async def _reckon(self, intent: LaunchIntent, chosen: tuple[str, ...], box: Box) -> None:
        profile, _ = self._launchable.merged(intent)
        told = await asyncio.to_thread(fit_of, profile, box, chosen)
        if self.display:
            self._fit = told
            self._show_sleep()
            self.query_one(FitBar).show(told, self._width, palette(self.app))

    def _intent(self) -> LaunchIntent:
        """Return what is asked for as typed; raises UsageError where it cannot be."""
        name = self.query_one("#name", Input).value.strip()
        if holder := next((one for one in self._servers if one.name == (name or self._default_name())), None):
            raise UsageError(f"{holder.name} is there already: {holder.state.value}", "choose another name")
        if name and not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a server's name", "use a-z, 0-9, '.', '_' and '-'")
        words = _words(self.query_one("#sets", Input).value)
        return LaunchIntent(
            self._launchable.profile.name,
            gpus=self._chosen(),
            port=self._port(self.query_one("#port", Input).value.strip()),
            sets=tuple(word for word in words if not _ENVIRON.match(word)),
            envs=tuple(word for word in words if _ENVIRON.match(word)),
            name=name or self._default_name(),
            sleep=self._sleeps and self._may_sleep,
            asleep=self._asleep and self._sleeps and self._may_sleep,
        )

    def _port(self, text: str) -> int | None:
        """Return the port to ask for: None for the profile's own, 0 for any free one."""
        if text == "auto":
            return 0
        if not text:
            return self._default_port()[0]
        if not (text.isdecimal() and 0 < int(text) < 65536):
            raise UsageError(f"{text!r} is not a port", "a number of 1–65535, or auto")
        if holder := next((one for one in self._servers if one.port == int(text)), None):
            raise UsageError(f"port {text} is taken by {holder.name}", "another number, or auto")
        return int(text)

    def _default_port(self) -> tuple[int | None, str]:
        """Return the port where none is typed, and what to say of it: the profile's own, unless a server has it."""
        port = self._launchable.profile.port
        holder = next((one for one in self._servers if one.port == port), None)
        return (None, str(port)) if holder is None else (0, f"auto ({port} is {holder.name}'s)")

    def _default_name(self) -> str | None:
        """Return the server's name where none is typed: None for the profile's, unless a live server has it."""
        taken, name = {one.name for one in self._servers}, self._launchable.profile.name
        if name not in taken:
            return None
        return next(f"{name[:60]}-{n}" for n in range(2, len(taken) + 3) if f"{name[:60]}-{n}" not in taken)

    def _warnings(self, intent: LaunchIntent) -> Sequence[str]:
        """Return what looks wrong among the settings as typed, with what may have been meant."""
        typed = {word.partition("=")[0].strip("- ").replace("-", "_").partition(".")[0] for word in intent.sets}
        found = lint(self._launchable.merged(intent)[0])
        return [
            f"{one.where.removeprefix('args.')}: {one.message}; {one.suggestion}"
            for one in found
            if one.where.removeprefix("args.") in typed
        ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to choose only what is not chosen, and sleep only to what could."""
        if action in ("sleep", "asleep"):
            return self._may_sleep and (action == "sleep" or self._sleeps)
        return action != "choose" or self._chosen() != parameters

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
        self.refresh_bindings()

    def action_choose(self, rest: str) -> None:
        """Tick nothing: `auto` or `cpu`."""
        self._ticked.clear()
        self._rest = rest
        self._follow()
        self.refresh_bindings()

    def action_sleep(self) -> None:
        """Let it give way asleep, or not."""
        self._sleeps = not self._sleeps
        self._asleep = self._asleep and self._sleeps
        self._follow()
        self.refresh_bindings()

    def action_asleep(self) -> None:
        """Start it as a warm spare, or to serve at once."""
        self._asleep = not self._asleep
        self._follow()

    def action_explain(self) -> None:
        """Say what the figures of the bar and of the list mean."""
        figures = ("fit", "weights", "kv_cache", "memory_free_bytes", "grants")
        self.app.push_screen(ExplainScreen(figures + (("sleep", "pinned") if self._may_sleep else ())))

    @on(Input.Submitted)
    def action_start(self) -> None:
        """End with the request."""
        try:
            self.dismiss(self._launchable.request(self._intent()))
        except GpuboxError as problem:
            self.gpubox.complain(problem)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise UsageError(f"the settings cannot be read: {problem}", "KEY=VALUE, quotes around spaces") from None
