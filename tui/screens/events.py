"""What has happened: the newest events of the selected server or of all, the latest at the bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

from backends.errors import GpuboxError
from backends.snapshots import Event, ServerState
from tui.format import clock_time, fit, moment, plural
from tui.keymap import key_of
from tui.themes import STATES, Palette, palette
from tui.widgets.key_footer import KeyFooter
from tui.widgets.live_table import GAP, Column, LiveTable

if TYPE_CHECKING:
    from tui.app import GpuboxApp

SHEET_CELLS = 116
LONGEST_NAME = 24
DAY_S = 86_400.0
SIGNS: dict[str, tuple[str, str]] = {
    **{str(state): sign for state, sign in STATES.items()},
    "started": ("▸", "primary"),
    "died": ("✗", "bad"),
    "wedged": ("!", "warn"),
    "timeout": ("!", "bad"),
    "memory": ("▲", "warn"),
    "orphan": ("▲", "warn"),
    "xid": ("▲", "warn"),
    "port": ("·", "dim"),
    "asleep": STATES[ServerState.SLEEPING],
    "awake": ("●", "good"),
    "switched": ("⇄", "good"),
    "switch-failed": ("✗", "bad"),
    "sleep-failed": ("!", "warn"),
    "evicted": ("▲", "warn"),
    "restored": ("↩", "warn"),
}
"""Each kind of event's sign, and the name of its colour in the palette; the kinds that are states have theirs."""
OTHER_SIGN = ("·", "dim")
NOTHING = "Nothing has happened yet. {close}, then {servers}: choose a profile and start it."


class EventsTable(LiveTable):
    """The events as rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.visit", "Go to server", id="events.visit", tooltip="Show the server of this event"),
    ]


class EventsScreen(ModalScreen[None]):
    """A sheet over any screen; it goes on following while it is open."""

    DEFAULT_CSS = """
    EventsScreen {
        align: center middle;

        #sheet {
            width: 120;
            max-width: 100%;
            height: 90%;
            padding: 0 1;
            border: round $primary;
            border-title-color: $primary;
            border-title-style: bold;
            border-subtitle-color: $dim;
            background: $surface;
        }

        EventsTable {
            height: 1fr;
            background: $surface;
        }

        EventsTable > .datatable--header, EventsTable:focus > .datatable--header {
            background: $surface;
        }

        #said {
            height: auto;
            max-height: 4;
            border-top: solid $border;
        }
    }
    """
    AUTO_FOCUS = "EventsTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "filter", "One server, or all", id="events.filter", tooltip="Of the selected server, or of all"),
        Binding("g", "oldest", "Oldest", show=False, id="events.oldest", tooltip="To the oldest event"),
        Binding("G", "newest", "Newest", show=False, id="events.newest", tooltip="To the newest event, and follow"),
        Binding("escape,q,e", "dismiss", "Close", id="events.close", tooltip="Back to the screen"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._earlier: tuple[Event, ...] = ()
        self._rows: dict[str, Event] = {}
        self._only_selected = False

    @property
    def gpubox(self) -> GpuboxApp:
        """The app, with its own type."""
        return cast("GpuboxApp", self.app)

    def compose(self) -> ComposeResult:
        """Make the list, and below it the whole text of the event under the cursor."""
        with Vertical(id="sheet") as sheet:
            sheet.border_title = "Events"
            yield EventsTable()
            yield Static(id="said", markup=False)
        yield KeyFooter()

    def on_mount(self) -> None:
        """Show what this screen has heard itself, until the keeper tells what was before."""
        if not self.display:
            return
        self.watch(self.app, "heard", self._show)
        self._read()

    @work(group="events", exclusive=True)
    async def _read(self) -> None:
        try:
            self._earlier = await self.gpubox.link.history()
        except GpuboxError as problem:
            self.gpubox.complain(problem)
            return
        self._show()

    def on_resize(self) -> None:
        """Lay out for the new size."""
        self._show()

    @property
    def events(self) -> tuple[Event, ...]:
        """The events to show, oldest first: the keeper's memory and what came since, each once."""
        every = sorted(dict.fromkeys((*self._earlier, *self.gpubox.heard)), key=lambda event: event.at)
        wanted = self.gpubox.selected
        return tuple(event for event in every if not self._only_selected or event.server == wanted)

    def _show(self) -> None:
        if not self.display:
            return  # It is being left: its parts go one by one, or were never there.
        table, events, colours = self.query_one(EventsTable), self.events, palette(self.app)
        was_last = table.row_count == 0 or table.cursor_row == table.row_count - 1
        whose = self.gpubox.selected if self._only_selected else "all servers"
        sheet = self.query_one("#sheet")
        sheet.border_title = f"Events of {whose}"
        sheet.border_subtitle = plural(len(events), "event")
        now = self.gpubox.now()
        is_today = all(now - event.at < DAY_S for event in events)
        time_cells = 8 if is_today else 19
        name_cells = min(LONGEST_NAME, max((len(event.server) for event in events), default=3))
        rest = min(SHEET_CELLS, self.app.size.width - 4) - time_cells - name_cells - 1 - 3 * GAP
        columns = (Column("", time_cells), Column("", 1), Column("", name_cells), Column("", max(1, rest)))
        self._rows = {f"{number}:{event.at}:{event.server}:{event.kind}": event for number, event in enumerate(events)}
        table.show_header = False
        table.show(
            columns,
            {key: _row(event, is_today, name_cells, rest, colours) for key, event in self._rows.items()},
        )
        if was_last and events:
            table.move_cursor(row=len(events) - 1)
        self._tell()

    @on(DataTable.RowHighlighted)
    def _tell(self) -> None:
        """Show the whole text of the event under the cursor: a cause may be longer than a row."""
        if not self.display:
            return
        event = self._under_cursor
        said = self.query_one("#said", Static)
        said.update(self._why_empty() if event is None else f"{moment(event.at)}  {event.text}")
        self.refresh_bindings()

    def _why_empty(self) -> str:
        if self._only_selected:
            return f"Nothing has happened to {self.gpubox.selected}. {key_of(self.app, 'events.filter')} shows all."
        return NOTHING.format(close=key_of(self.app, "events.close"), servers=key_of(self.app, "mode.servers"))

    @property
    def _under_cursor(self) -> Event | None:
        keys = (table.cursor_key for table in self.query(EventsTable))
        return self._rows.get(next(keys, None) or "")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to go only to a server that is there, and to move only where there is something."""
        match action:
            case "visit":
                event = self._under_cursor
                return event is not None and self.gpubox.named(event.server) is not None
            case "filter":
                return self.gpubox.selected is not None
            case "oldest" | "newest":
                return len(self._rows) > 1
        return True

    def action_filter(self) -> None:
        """Show the selected server's events, or all again."""
        self._only_selected = not self._only_selected
        self.query_one(EventsTable).clear()
        self._show()

    def action_oldest(self) -> None:
        """Go to the top."""
        self.query_one(EventsTable).move_cursor(row=0)

    def action_newest(self) -> None:
        """Go to the bottom, where new events appear."""
        self.query_one(EventsTable).move_cursor(row=max(0, len(self._rows) - 1))

    @on(DataTable.RowSelected)
    def action_visit(self) -> None:
        """Select the server of the event under the cursor, and show it."""
        event = self._under_cursor
        if event is not None and self.gpubox.named(event.server) is not None:
            self.gpubox.selected = event.server
            self.dismiss()
            self.gpubox.call_later(self.gpubox.action_go, "servers")


def _row(event: Event, is_today: bool, name_cells: int, rest: int, colours: Palette) -> tuple[Text, ...]:
    sign, colour = SIGNS.get(event.kind, OTHER_SIGN)
    shade = getattr(colours, colour)
    text = " ".join(event.text.split())
    is_bad = colour in ("bad", "warn")
    return (
        Text(clock_time(event.at) if is_today else moment(event.at), style=colours.dim),
        Text(sign, style=shade),
        Text(fit(event.server or "box", name_cells), style=colours.accent),
        Text(fit(text, max(1, rest)), style=shade if is_bad else colours.text),
    )
