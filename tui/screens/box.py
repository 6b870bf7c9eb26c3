"""The box: every GPU, whose memory it is, and the host."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from backends.errors import GpuboxError
from backends.orphans import Orphan
from backends.snapshots import Box, EccErrors, Gpu, GpuProcess, Missing, Owner, Server, Snapshot
from tui.format import fit, memory, plural
from tui.owners import SIGNS, owned
from tui.screens.base import DETAILS_TOOLTIP, GpuboxScreen
from tui.screens.confirm import ConfirmScreen
from tui.screens.end_foreign import EndForeignScreen
from tui.sleeping import held_text, slot_parts
from tui.themes import STATES, Palette, palette
from tui.widgets.gpu_balance import GpuWindow
from tui.widgets.gpu_details import GpuDetails
from tui.widgets.gpu_table import GpuTable
from tui.widgets.host_line import box_line, host_line
from tui.widgets.live_text import LiveText, can_scroll, keep_focus
from tui.widgets.status_bar import describe

HISTORY_EVERY_S = 5.0
ROOM_LINES = 14
"""So many lines beside those of the GPUs leave one for what sleep holds of the host."""


class BoxScreen(GpuboxScreen):
    """Host and GPUs above, the GPU under the cursor below."""

    CSS_PATH = "../styles/box.tcss"
    CHANGES = frozenset({"reap", "end_foreign"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "reap", "Reap", id="box.reap", tooltip="Kill what a server left behind on this GPU"),
        Binding("X", "end_foreign", "End …", id="box.end_foreign", tooltip="End a foreign process of this GPU"),
        Binding("ctrl+down", "scroll_details(1)", "Down", show=False, tooltip=DETAILS_TOOLTIP, id="details.down"),
        Binding("ctrl+up", "scroll_details(-1)", "Up", show=False, tooltip=DETAILS_TOOLTIP, id="details.up"),
    ]

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield LiveText(id="host")
        yield GpuTable()
        yield GpuDetails()
        yield LiveText(id="no-gpu", wraps=True)

    def __init__(self) -> None:
        super().__init__()
        self._asked_for: str | None = None
        self._offered: object = None
        self._unplaced: tuple[Orphan, ...] = ()
        self._window = GpuWindow()

    def on_mount(self) -> None:
        """Keep the history of the GPU under the cursor fresh, and what no GPU shows: orphans on the CPU."""
        self.set_interval(HISTORY_EVERY_S, self._read_history)
        self.set_interval(HISTORY_EVERY_S, self._read_orphans)

    def on_screen_resume(self) -> None:
        """Look for orphans on the CPU, and for what the GPU did meanwhile, at once."""
        self._read_orphans()
        self._read_history()

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show every GPU."""
        width, colours = self.app.size.width - self.scrollbar_size_vertical - 2, palette(self.app)
        lines = [box_line(snapshot.box, width, colours), host_line(snapshot.box.host, width, colours)]
        has_room = self.app.size.height - len(snapshot.box.gpus) >= ROOM_LINES
        if (held := held_text(snapshot.servers)) and has_room:
            lines.append(Text(fit(f"z {held}", width), style=colours.dim))
        lines += [_unplaced_line(orphan, self.key_of("box.reap"), colours) for orphan in self._unplaced]
        self.query_one("#host", LiveText).show(Text("\n").join(lines if snapshot.box.gpus else lines[1:]))
        self._window.take(snapshot.box)
        self.set_class(not snapshot.box.gpus, "-no-gpu")
        table = self.query_one(GpuTable)
        self.set_focus(keep_focus(self.focused, table, shown=bool(snapshot.box.gpus)))
        if not snapshot.box.gpus:
            told = no_gpu(snapshot.box, snapshot.servers, self.key_of("mode.servers"), colours)
            self.query_one("#no-gpu", LiveText).show(told)
            self._offer()
            return
        table.follow(snapshot, width)
        self._show_details(snapshot, table.cursor_key)

    def _show_details(self, snapshot: Snapshot, uuid: str | None) -> None:
        details = self.query_one(GpuDetails)
        balances = [
            self._window.balance(server) for server in snapshot.servers if server.is_live and uuid in server.gpus
        ]
        details.follow(snapshot, uuid, [balance for balance in balances if balance is not None])
        self._offer()
        if details.lacks_history and self._asked_for != uuid:
            self._read_history()

    def explained(self) -> tuple[str, ...]:
        """What is wrong with the GPU under the cursor first, then what stands in the table and the details."""
        snapshot, gpu = self.gpubox.snapshot, self._gpu()
        if snapshot is None:
            return ()
        host = ("cpu_utilization", "load_1m", "memory_available_bytes")
        if gpu is None:
            return host
        wrong = [] if gpu.xids == () or isinstance(gpu.xids, Missing) else ["xid"]
        if isinstance(gpu.ecc, EccErrors) and gpu.ecc.uncorrected:
            wrong.append("ecc_uncorrected")
        if isinstance(gpu.throttling, tuple) and gpu.throttling:
            wrong.append("throttle")
        shared = any(len(server.gpus) > 1 and gpu.uuid in server.gpus for server in snapshot.servers if server.is_live)
        figures = (
            *wrong,
            *(("tp_balance",) if shared else ()),
            "memory_used_bytes",
            "shares",
            "utilization",
            "temperature_c",
            "power_w",
            "grants",
            "processes",
            *(("orphan",) if self._orphans() else ()),
            *(("sleep", "sleep_level", "pinned") if slot_parts(gpu.uuid, snapshot.servers) else ()),
            *("ecc_uncorrected", "ecc_corrected", "throttle", "xid"),
            *host,
        )
        return tuple(dict.fromkeys(figures))

    def action_scroll_details(self, lines: int) -> None:
        """Show what the panel has no room for."""
        self.query_one(GpuDetails).scroll_relative(y=lines, animate=False)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer to end only what is there to end."""
        if not super().check_action(action, parameters):
            return False
        match action:
            case "scroll_details":
                return can_scroll(self.query_one(GpuDetails), parameters[0])
            case "reap":
                return bool(self._orphans())
            case "end_foreign":
                return bool(self._foreign())
        return True

    def action_reap(self) -> None:
        """Kill the orphans of the GPU under the cursor, after a question."""
        orphans = self._orphans()
        lines = "\n".join(f"pid {pid}  {command}, left by {server}" for pid, _, command, server in orphans)
        text = f"Nobody looks after {'it' if len(orphans) == 1 else 'them'} any more:\n\n{lines}"

        def reap(sure: bool | None) -> None:
            if sure:
                self.gpubox.request(self._reap([(pid, ticks) for pid, ticks, _, _ in orphans]))

        self.app.push_screen(ConfirmScreen(f"Kill {plural(len(orphans), 'orphan')}?", text, "Kill"), reap)

    def action_end_foreign(self) -> None:
        """End a process that is not gpubox's, once its pid was typed."""

        def end(process: GpuProcess | None) -> None:
            if process is not None and process.start_ticks is not None:
                self.gpubox.request(self._reap([(process.pid, process.start_ticks)], foreign=True))

        gpu = self._gpu()
        title = f"End a process on GPU {gpu.index}?" if gpu else "End a process?"
        self.app.push_screen(EndForeignScreen(title, self._foreign()), end)

    async def _reap(self, processes: list[tuple[int, int]], *, foreign: bool = False) -> None:
        for pid, ticks in processes:
            try:
                reaped = await self.gpubox.link.reap(pid, ticks, foreign=foreign)
            except GpuboxError as problem:
                # One that went with another one must not save the rest.
                self.gpubox.complain(problem)
            else:
                self.notify(f"pid {pid} is gone ({reaped.signal})", markup=False)
        self._read_orphans()

    def _orphans(self) -> list[tuple[int, int, str, str]]:
        """Return pid, start ticks, command and server of the orphans under the cursor, else of those on the CPU."""
        gpu = self._gpu()
        here = [
            (one.pid, one.start_ticks, one.command, one.server or "a server")
            for one in owned([gpu] if gpu else [], Owner.ORPHAN)
            if one.start_ticks is not None
        ]
        return here or [(one.pid, one.start_ticks, one.command, one.server) for one in self._unplaced]

    def _foreign(self) -> tuple[GpuProcess, ...]:
        gpu = self._gpu()
        return tuple(one for one in owned([gpu] if gpu else [], Owner.FOREIGN) if one.start_ticks is not None)

    def _gpu(self) -> Gpu | None:
        snapshot = self.gpubox.snapshot
        uuids = [details.uuid for details in self.query(GpuDetails)]
        return next((gpu for gpu in snapshot.box.gpus if gpu.uuid in uuids), None) if snapshot else None

    def _offer(self) -> None:
        """Draw the keys anew where others work now."""
        offered = bool(self._orphans()), bool(self._foreign())
        if offered != self._offered:
            self._offered = offered
            self.refresh_bindings()

    def _read_orphans(self) -> None:
        if self.is_current and self.gpubox.trouble is None:
            self._look_for_orphans()

    @work(group="orphans", exclusive=True)
    async def _look_for_orphans(self) -> None:
        try:
            found = await self.gpubox.link.orphans()
        except GpuboxError:
            return
        unplaced = tuple(orphan for orphan in found if not orphan.gpus)
        if unplaced != self._unplaced:
            self._unplaced = unplaced
            self._changed()

    @on(DataTable.RowHighlighted)
    def _other_gpu(self, message: DataTable.RowHighlighted) -> None:
        if self.gpubox.snapshot is not None:
            self._show_details(self.gpubox.snapshot, message.row_key.value)

    def _read_history(self) -> None:
        details = self.query_one(GpuDetails)
        if self.is_current and details.uuid is not None and self.gpubox.trouble is None:
            self._asked_for = details.uuid
            self._history(details.uuid)

    @work(group="history", exclusive=True)
    async def _history(self, uuid: str) -> None:
        try:
            series = await self.gpubox.link.gpu_series(uuid)
        except GpuboxError:
            return
        details = self.query_one(GpuDetails)
        details.take(uuid, series)
        if self.gpubox.snapshot is not None:
            self._show_details(self.gpubox.snapshot, details.uuid)


def _unplaced_line(orphan: Orphan, key: str, colours: Palette) -> Text:
    left = f"{SIGNS[Owner.ORPHAN]} {orphan.server} left pid {orphan.pid} behind"
    held = f", with {memory(orphan.host_bytes)} of the host's memory · {key} ends it"
    return Text.assemble((left, colours.bad), (held, colours.dim), no_wrap=True, overflow="ellipsis")


def no_gpu(box: Box, servers: tuple[Server, ...], key: str, colours: Palette) -> Text:
    """Say plainly that there is no GPU, why, and what works all the same; `key` shows the servers."""
    text = Text.assemble(
        ("This box has no GPU that gpubox can use.\n", f"bold {colours.text}"),
        (f"{box.no_gpus or 'none was found'}\n\n", colours.warn),
        ("Servers can run on the CPU: press ", colours.text),
        (key, f"bold {colours.primary}"),
        (", choose a profile, and start it.\n\n", colours.text),
    )
    live = [server for server in servers if server.is_live]
    text.append(f"{plural(len(live), 'server')} on the CPU now" if live else "No server runs now.", colours.dim)
    for server in live:
        sign, colour = STATES[server.state][0], colours.state(server.state)
        text.append(f"\n{sign} ", colour).append(f"{server.name:<24}", colours.text)
        text.append(f"{describe(server):<16}", colour).append(server.address, colours.dim)
    return text
