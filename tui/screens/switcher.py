"""The switcher: all that could serve, as in an alt-tab list; a key has it serve, and what is in its way gives way."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import DataTable, Static

from backends.errors import ConflictError, GpuboxError
from backends.snapshots import Server, ServerState, Snapshot
from backends.switches import Switch, SwitchChoice, Way
from tui.format import fit, indices
from tui.keymap import key_of
from tui.screens.explain import ExplainScreen
from tui.sleeping import (
    WAYS,
    expected_text,
    giving_text,
    size_text,
    start_times,
    state_words,
    step_text,
    step_took,
    switched_line,
)
from tui.themes import STATES, Palette, palette
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_table import GAP, Column, LiveTable
from tui.widgets.profile_table import ProfileRow

if TYPE_CHECKING:
    from tui.app import GpuboxApp

SHEET_CELLS = 120
WITH_GIVING = 112
"""From so many cells on, who gives way has a column; else it is told of the row under the cursor."""
KEYS = 9
STEP_S = 0.1
"""How often a running step's time is drawn."""
AGAIN_S = 5.0
LONGEST_NAME = 26
NOTHING = "No server and no profile yet. {key} shows the profiles, where one can be made."
EXPLAINED = ("switch", "sleep", "sleep_level", "pinned", "idle")


@dataclass(frozen=True, slots=True)
class Row:
    """What could serve: a server, or a profile that no server is of; `choice` is what a switch to it would do."""

    name: str
    model: str
    choice: SwitchChoice
    server: Server | None = None


class SwitcherTable(LiveTable):
    """What could serve, as rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.choose(-1)", "Switch", id="switcher.switch", tooltip="Have it serve"),
    ]


class SwitcherScreen(ModalScreen[None]):
    """Opens at once with what is known, and asks the keeper what each switch would do; a running one is shown live."""

    DEFAULT_CSS = """
    SwitcherScreen {
        align: center middle;

        #sheet {
            width: 124;
            max-width: 100%;
            height: auto;
            max-height: 95%;
            padding: 0 1;
            border: round $primary;
            border-title-color: $primary;
            border-title-style: bold;
            border-subtitle-color: $dim;
            background: $surface;
        }

        SwitcherTable {
            height: auto;
            max-height: 50vh;
            background: $surface;
        }

        SwitcherTable > .datatable--header, SwitcherTable:focus > .datatable--header {
            background: $surface;
        }

        #told {
            height: auto;
            max-height: 9;
            border-top: solid $border;
            scrollbar-size-vertical: 1;
        }

        #said {
            height: auto;
        }
    }
    """
    AUTO_FOCUS = "SwitcherTable"
    CHANGES = frozenset({"choose", "sleep"})
    TELLS = frozenset({"switched"})
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(
                str(number), f"choose({number - 1})", show=False, id=f"switcher.{number}", tooltip="Have this one serve"
            )
            for number in range(1, KEYS + 1)
        ),
        Binding("z", "sleep", "Sleep", id="switcher.sleep", tooltip="Put it to sleep: its GPUs' memory comes back"),
        Binding("i", "explain", "Explain", show=False, id="switcher.explain", tooltip="What sleep is and costs"),
        Binding("escape,S,f8,q", "dismiss", "Close", id="switcher.close", tooltip="Back; a switch goes on"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._choices: dict[str, SwitchChoice] = {}
        self._profiles: tuple[ProfileRow, ...] = ()
        self._rows: dict[str, Row] = {}
        self._starts: dict[str, float] = {}
        self._placed = False
        self._to: str | None = None
        self._over: Switch | None = None
        self._ticking: Timer | None = None

    @property
    def gpubox(self) -> GpuboxApp:
        """The app, with its own type."""
        return cast("GpuboxApp", self.app)

    def compose(self) -> ComposeResult:
        """Make the list, and below it what is told of the row under the cursor, or of the switch that runs."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title = "Switch to"
            yield SwitcherTable()
            with VerticalScroll(id="told", can_focus=False):
                yield Static(id="said", markup=False)
        yield KeyFooter()

    def on_mount(self) -> None:
        """Follow the servers, and what a switch to each would do now."""
        if not self.display:
            return  # It is left already, before it had parts.
        self._choices = {choice.server: choice for choice in self.gpubox.switch_choices}
        self._ticking = self.set_interval(STEP_S, self._tick)
        self.watch(self.app, "snapshot", self._show, init=False)
        self.watch(self.app, "switched", self._end, init=False)
        self.set_interval(AGAIN_S, self._ask)
        self._show()
        self._ask()
        self._read_profiles()

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self._show()

    @work(group="choices", exclusive=True)
    async def _ask(self) -> None:
        try:
            choices = await self.gpubox.link.switch_choices()
        except GpuboxError as problem:
            if not self._choices:
                self.gpubox.complain(problem)
            return
        self.gpubox.switch_choices = choices
        self._choices = {choice.server: choice for choice in choices}
        self._show()

    @work(group="profiles", exclusive=True)
    async def _read_profiles(self) -> None:
        self._profiles = await self.gpubox.profile_rows()
        self._show()
        with contextlib.suppress(GpuboxError):
            self._starts = start_times(await self.gpubox.link.launches())
            self._show()

    def _end(self) -> None:
        """Show how a switch ended, and what the next would do."""
        over = self.gpubox.switched
        if over is not None and over.to == self._to:
            self._over = over
        self._show()
        self._ask()

    def _found(self) -> dict[str, Row]:
        """Return the rows: servers by name, so that a number stays one's own, then profiles without a server."""
        servers = sorted((one for one in self.gpubox.servers if one.foreign is None), key=lambda one: one.name)
        rows = {one.name: Row(one.name, one.model, self._choice(one), one) for one in servers}
        taken = {one.name for one in self.gpubox.servers} | {one.profile for one in servers}
        for profile in self._profiles:
            if profile.problem is None and profile.name not in taken:
                choice = SwitchChoice(profile.name, Way.START, expected_s=self._starts.get(profile.name))
                rows[profile.name] = Row(profile.name, profile.model, choice)
        return rows

    def _choice(self, server: Server) -> SwitchChoice:
        """Return what the keeper said a switch would do, or, before it has, what the state tells."""
        known = self._choices.get(server.name, SwitchChoice(server.name, Way.AWAKE))
        if server.state is ServerState.READY:
            return SwitchChoice(server.name, Way.AWAKE, size_bytes=known.size_bytes)
        if known.way is not Way.AWAKE:
            return known
        way = Way.START
        if server.sleep is not None:
            way = Way.WAKE_1 if server.sleep.level == 1 else Way.WAKE_2
        return SwitchChoice(server.name, way, size_bytes=known.size_bytes)

    def _show(self) -> None:
        if not self.display or not self.is_attached:
            return
        table, colours = self.query_one(SwitcherTable), palette(self.app)
        self._rows = self._found()
        width = min(SHEET_CELLS, self.app.size.width - 4)
        names = min(LONGEST_NAME, max((len(name) for name in self._rows), default=8))
        state = 28 if width >= WITH_GIVING else 22
        giving = width - 1 - names - state - 9 - 8 - 5 * GAP if width >= WITH_GIVING else 0
        columns = [Column("", 1), Column("Name", names), Column("State", state), Column("Size", 9, "right")]
        columns += [Column("Takes", 8, "right"), *([Column("Who gives way", giving)] if giving else [])]
        table.show(
            columns,
            {
                name: _cells(row, number, names, state, giving, self.gpubox, colours)
                for number, (name, row) in enumerate(self._rows.items(), start=1)
            },
        )
        if not self._placed and self._rows:
            self._placed = True
            table.select(self._likeliest())
        self._tell()
        self.refresh_bindings()

    def _likeliest(self) -> str:
        """Return the row to begin on: what fell asleep last, as alt-tab does, else what does not serve."""
        asleep = [one.server for one in self._rows.values() if one.server is not None and one.server.sleep is not None]
        latest = max(asleep, key=lambda one: one.sleep.since if one.sleep else 0.0, default=None)
        if latest is not None:
            return latest.name
        return next(
            (name for name, row in self._rows.items() if row.choice.way is not Way.AWAKE), next(iter(self._rows))
        )

    @property
    def _switch(self) -> Switch | None:
        snapshot: Snapshot | None = self.gpubox.snapshot
        switches = snapshot.switches if snapshot else ()
        return next((one for one in switches if one.to == self._to), switches[-1] if switches else None)

    def _tick(self) -> None:
        if self._switch is not None:
            self._tell()

    @on(DataTable.RowHighlighted)
    def _moved(self) -> None:
        self._over = None
        self._tell()
        self.refresh_bindings()

    def _tell(self) -> None:
        """Tell of the switch that runs or has just ended, else of the row under the cursor."""
        if not self.display or not self.is_attached:
            return
        colours, said = palette(self.app), self.query_one("#said", Static)
        switch = self._switch or self._over
        if switch is not None:
            said.update(switch_lines(switch, self.gpubox.now(), colours))
        elif (row := self._row()) is not None:
            said.update(row_lines(row, self.gpubox.servers, colours))
        else:
            said.update(NOTHING.format(key=key_of(self.app, "mode.profiles")))

    def _row(self, number: int = -1) -> Row | None:
        if number >= 0:
            return next((row for at, row in enumerate(self._rows.values()) if at == number), None)
        keys = (table.cursor_key for table in self.query(SwitcherTable))
        return self._rows.get(next(keys, None) or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what is there; a read-only screen only looks."""
        if action in self.CHANGES and self.gpubox.readonly:
            return False
        if action == "choose":
            return self._row(int(str(parameters[0]))) is not None
        if action == "sleep":
            row = self._row()
            return row is not None and row.server is not None and row.server.can_sleep and _serves(row.server)
        return True

    def action_choose(self, number: int) -> None:
        """Have a row serve: by its number, or with -1 the one under the cursor; one that serves is selected only."""
        if (row := self._row(number)) is None:
            return
        self.query_one(SwitcherTable).select(row.name)
        if row.server is not None:
            self.gpubox.selected = row.name
        if row.choice.way is Way.AWAKE:
            self.dismiss()
        elif row.choice.way is Way.CANNOT:
            self.gpubox.complain(ConflictError(f"{row.name} cannot serve now", row.choice.note))
        else:
            self._to, self._over = row.name, None
            self.gpubox.switch_to(row.name, is_profile=row.server is None)

    def action_sleep(self) -> None:
        """Put the server under the cursor to sleep."""
        if (row := self._row()) is not None:
            self.gpubox.action_sleep_server(row.name)

    def action_explain(self) -> None:
        """Say what sleep is, and what it costs."""
        self.app.push_screen(ExplainScreen(EXPLAINED))


def _serves(server: Server) -> bool:
    return server.state is ServerState.READY


def _cells(
    row: Row, number: int, names: int, state: int, giving: int, app: GpuboxApp, colours: Palette
) -> tuple[Text, ...]:
    key = Text(str(number) if number <= KEYS else "", style=f"bold {colours.primary}")
    name = Text(fit(row.name, names), style=f"bold {colours.text}")
    if row.server is None:
        shown = Text("· profile", style=colours.dim)
    else:
        sign, colour = STATES[row.server.state][0], colours.state(row.server.state)
        shown = Text(f"{sign} {fit(state_words(row.server, app.now(), brief=state < 28), state - 2)}", style=colour)
    cannot = row.choice.way is Way.CANNOT
    takes = Text("cannot" if cannot else expected_text(row.choice), style=colours.warn if cannot else colours.text)
    cells = (key, name, shown, Text(size_text(row.choice), style=colours.dim), takes)
    if not giving:
        return cells
    who = row.choice.note if cannot else giving_text(row.choice.giving_way, app.servers)
    return (*cells, Text(fit(who, giving), style=colours.dim))


def row_lines(row: Row, servers: tuple[Server, ...], colours: Palette) -> Text:
    """Say what a switch to a row would do: its model, its way and time, who gives way and why not in a lighter way."""
    choice = row.choice
    where = ""
    if row.server is not None:
        where = f" on GPU {indices(row.server.gpu_indices)}" if row.server.gpu_indices else " on the CPU"
    took = expected_text(choice)
    text = Text.assemble(
        (row.model, colours.text),
        ("\n" + WAYS[choice.way] + where, colours.accent),
        (f" · {took}" if took and choice.way is not Way.AWAKE else "", colours.accent),
    )
    for one in choice.giving_way:
        why = f": {one.why}" if one.why else ""
        text.append(f"\n{giving_text((one,), servers)}", colours.text).append(why, colours.dim)
    if row.server is None:
        text.append("\nwhat is in its way, if anything, gives way", colours.dim)
    elif not choice.giving_way and choice.way in (Way.WAKE_1, Way.WAKE_2, Way.START):
        text.append("\nnobody has to give way", colours.dim)
    if choice.note:
        text.append(f"\n{choice.note}", colours.warn)
    return text


def switch_lines(switch: Switch, now: float, colours: Palette) -> Text:
    """Tell a switch step by step with times, the running one's growing; then how it ended, and how long it took."""
    text = Text()
    if switch.outcome == "running":
        text.append(f"to {switch.to} · {step_took(max(0.0, now - switch.began_at))}", f"bold {colours.primary}")
        if not switch.steps:
            text.append("  waits for the switch before it", colours.dim)
    elif switch.outcome == "done":
        text.append(f"✓ {switch.to} serves after {step_took(switch.took_s or 0.0)}", f"bold {colours.good}")
    else:
        text.append(f"✗ {switch.to}: {switched_line(switch)}", f"bold {colours.bad}")
    for step in switch.steps:
        over = step.took_s is not None
        took_s = step.took_s if step.took_s is not None else max(0.0, now - step.began_at)
        text.append(f"\n{'✓' if over else '▸'} ", colours.good if over else colours.primary)
        text.append(f"{step_text(step):<13}", colours.text if over else f"bold {colours.text}")
        text.append(f"{step_took(took_s):>9}", colours.text).append(f"  {step.server}", colours.dim)
        text.append(f" · {step.note}" if step.note else "", colours.dim)
    return text
