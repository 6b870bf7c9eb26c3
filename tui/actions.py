"""What keys and the palette do to servers: each a request to the keeper, each failure a toast, never a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.actions import ActionParseResult, parse
from textual.app import App
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.reactive import reactive

from backends.errors import ConflictError, GpuboxError, ProfileError
from backends.handover import base_url_line, curl_line, launch_line, ssh_line
from backends.link import KeeperLink
from backends.readonly import refusal
from backends.snapshots import Foreign, Missing, Server, ServerState, Snapshot, StartRequest, SwitchRequest
from backends.switches import GivingWay, Switch, SwitchChoice, Way, Yield
from tui.fixing import carry_out, choices
from tui.format import plural
from tui.launching import Launchable, LaunchIntent, read_launchable
from tui.messages import SwitchEnded
from tui.screens.card import CardScreen
from tui.screens.confirm import ConfirmScreen
from tui.screens.use import UseLine, UseScreen
from tui.widgets.profile_table import ProfileRow, list_profiles
from tui.widgets.server_table import ServerTable

if TYPE_CHECKING:
    from backends.diagnosis.fix import Fix
    from profiles.store import Store

ENDING = (ServerState.DRAINING, ServerState.STOPPING)
TP = "tensor_parallel_size"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServerActions(App[None]):
    """The part of the app that asks the keeper for something; a server is named, or it is the selected one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "S,f8",
            "switcher",
            "Switcher",
            show=False,
            id="app.switcher",
            tooltip="Choose who serves, and who gives way",
        ),
    ]

    link: KeeperLink
    readonly: bool
    store: Store | None
    awaited: str | None = None
    switch_choices: tuple[SwitchChoice, ...] = ()
    """What the keeper said last that a switch to each server would do."""

    switched: reactive[Switch | None] = reactive(None, repaint=False)
    snapshot: reactive[Snapshot | None] = reactive(None, repaint=False)
    selected: reactive[str | None] = reactive(None, repaint=False)

    @property
    def servers(self) -> tuple[Server, ...]:
        """The servers as last heard."""
        return self.snapshot.servers if self.snapshot else ()

    def named(self, name: str | None = None) -> Server | None:
        """Return the server of that name, or the selected one."""
        wanted = self.selected if name is None else name
        return next((server for server in self.servers if server.name == wanted), None)

    def complain(self, problem: GpuboxError) -> None:
        """Show an error with what to do next."""
        self.notify(problem.hint or "", title=problem.message, severity="error", timeout=10, markup=False)

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Run an action; one that a read-only screen does not offer says so."""
        if await super().run_action(action, default_namespace, namespaces):
            return True
        destination, name, _ = parse(action) if isinstance(action, str) else action
        node = self.screen if destination == "screen" else default_namespace or self
        if name not in getattr(node, "CHANGES", ()):
            return False
        server = self.named()
        if self.readonly:
            self.complain(refusal(name.replace("_", " ")))
        elif server is not None and server.foreign is not None and name in ("stop", "restart", "forget"):
            self.complain(by_hand(server.name, server.foreign))
        else:
            return False
        return True

    def request(self, work: Coroutine[Any, Any, object]) -> None:
        """Ask the keeper in the background; its refusal becomes a toast."""

        async def ask() -> None:
            try:
                await work
            except GpuboxError as problem:
                self.complain(problem)

        self.run_worker(ask(), group="requests")

    async def profile_rows(self) -> tuple[ProfileRow, ...]:
        """Return all profiles, read anew; the broken ones with their problems."""
        return await asyncio.to_thread(list_profiles, self.store) if self.store is not None else ()

    def begin(self, intent: LaunchIntent) -> None:
        """Start what an intent says."""

        async def start() -> None:
            await self._start((await self._launchable(intent.profile)).request(intent))

        self.request(start())

    def action_launch(self, profile: str) -> None:
        """Open the launch sheet for a profile."""

        async def ask() -> None:
            # Not above: it takes pydantic, and a third of the time to the first picture.
            from tui.screens.launch import LaunchScreen

            launchable = await self._launchable(profile)
            if not isinstance(self.screen, LaunchScreen):
                self.push_screen(LaunchScreen(launchable), self._begin_request)

        self.request(ask())

    def _begin_request(self, request: StartRequest | None) -> None:
        if request is not None:
            self.request(self._start(request))

    async def _launchable(self, profile: str) -> Launchable:
        if self.store is None:
            raise ProfileError("there are no profiles here")
        return await asyncio.to_thread(read_launchable, self.store, profile)

    async def _start(self, request: StartRequest) -> None:
        self.awaited = (await self.link.start(request)).name
        self.meet()

    def meet(self) -> None:
        """Go to the server that was just started, once the keeper's stream tells of it."""
        if self.awaited is not None and self.named(self.awaited) is not None:
            self.selected, self.awaited = self.awaited, None
            self.switch_mode("servers")
            self.call_after_refresh(self._focus_servers)

    def _focus_servers(self) -> None:
        for table in self.screen.query(ServerTable):
            table.focus()

    @on(SwitchEnded)
    def _switch_ended(self, message: SwitchEnded) -> None:
        self.switched = message.switch

    def action_switcher(self) -> None:
        """Show everything that could serve: a key has it serve."""
        from tui.screens.switcher import SwitcherScreen

        self.push_screen(SwitcherScreen())

    def action_switch_to(self, name: str | None = None) -> None:
        """Have a server serve instead of those in its way."""
        if (server := self.named(name)) is not None:
            self.switch_to(server.name)

    def switch_to(self, name: str, *, is_profile: bool = False) -> None:
        """Have a server serve, or a profile's; asks first where requests run on those that give way."""
        self.request(self._switch_to(name, is_profile=is_profile))

    async def _switch_to(self, name: str, *, is_profile: bool) -> None:
        server, start = self.named(name), None
        if is_profile and (server is None or not server.is_live):
            start = (await self._launchable(name)).request(LaunchIntent(name, name=name))
        self.switch_choices = await self.link.switch_choices()
        choice = next((one for one in self.switch_choices if one.server == name), SwitchChoice(name, Way.START))
        if choice.way is Way.CANNOT:
            raise ConflictError(f"{name} cannot serve now", choice.note)
        if choice.way is Way.AWAKE and start is None:
            self.notify(f"{name} serves already", markup=False)
            return

        async def switch() -> None:
            if start is not None and self.named(name) is None:
                self.awaited = name
            try:
                await self.link.switch(SwitchRequest(name, start))
            except GpuboxError:
                self.awaited = None
                raise
            self.meet()

        def go_on(sure: bool | None) -> None:
            if sure:
                self.request(switch())

        lost = self._lost_by(choice) if server is not None else self._lost_by_a_start(start)
        if lost:
            self.push_screen(ConfirmScreen(f"Switch to {name}?", "\n".join(lost), "Switch"), go_on)
        else:
            await switch()

    def _lost_by(self, choice: SwitchChoice) -> list[str]:
        """Say what requests are running on those that give way."""
        return [said for giving in choice.giving_way if (said := self._lost_of(giving))]

    def _lost_of(self, giving: GivingWay) -> str:
        server = self.named(giving.server)
        if server is None:
            return ""
        if giving.how is Yield.STOP and (taken := in_use(server)):
            return f"{server.name} stops. {taken}"
        return f"{server.name} falls asleep. {running_text(server)}" if running_text(server) else ""

    def _lost_by_a_start(self, start: StartRequest | None) -> list[str]:
        """Say who may have to give way to a profile that no server is of yet: whoever was used the longest ago."""
        if start is None or self.snapshot is None:
            return []
        content, gpus = start.profile, self.snapshot.box.gpus
        on_cpu = content.get("gpus") == "cpu" or not gpus
        needed = 0 if on_cpu else int(content.get("gpus") or 0) or int(content.get("args", {}).get(TP, 1))
        if not on_cpu and sum(gpu.holder is None and gpu.refusal is None for gpu in gpus) >= needed:
            return []
        used = [one for one in self.servers if bool(one.gpus) is not on_cpu and one.foreign is None]
        told = [f"{one.name}: {running_text(one)}" for one in used if running_text(one)]
        return ["Who was used the longest ago gives way. In use now:", *told] if told else []

    def action_sleep_server(self, name: str | None = None) -> None:
        """Put a server to sleep, after a question where requests are running on it."""
        if (server := self.named(name)) is None:
            return
        ask = partial(self.link.sleep, server.name)

        def go_on(sure: bool | None) -> None:
            if sure:
                self.request(ask())

        if taken := running_text(server):
            self.push_screen(ConfirmScreen(f"Put {server.name} to sleep?", taken, "Sleep"), go_on)
        else:
            go_on(True)

    def action_stop_server(self, name: str | None = None, force: bool = False) -> None:
        """Stop a server, after a question where somebody may be using it; a second time kills it."""
        if (server := self.named(name)) is not None:
            force = force or server.state in ENDING
            self._unless_in_use(server, "Kill" if force else "Stop", partial(self.link.stop, server.name, force=force))

    def action_restart_server(self, name: str | None = None) -> None:
        """Stop a server where it runs, and start it again as it was started; asks as for a stop."""
        if (server := self.named(name)) is not None:
            self._unless_in_use(server, "Restart", partial(self.link.restart, server.name))

    def _unless_in_use(self, server: Server, what: str, ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Ask the keeper for something that ends a server; where that takes it from somebody, the user first."""

        def go_on(sure: bool | None) -> None:
            if sure:
                self.request(ask())

        if taken := in_use(server, kills=what == "Kill"):
            self.push_screen(ConfirmScreen(f"{what} {server.name}?", taken, what), go_on)
        else:
            go_on(True)

    def action_fix_server(self, name: str | None = None) -> None:
        """Show why a server failed, and what each remedy would change; apply the one that is chosen."""
        server = self.named(name)
        if server is None or server.card is None:
            return
        card = server.card

        async def ask() -> None:
            content = await self.link.profile(server.name)
            found = await asyncio.to_thread(choices, self.store, server, content)
            self.push_screen(CardScreen(server, card, found), apply)

        def apply(fix: Fix | None) -> None:
            if fix is not None and self.store is not None:
                self.request(carry_out(self.link, self.store, server, fix))

        self.request(ask())

    def action_forget_server(self, name: str | None = None) -> None:
        """Drop a server that has ended from the list."""
        server = self.named(name)
        if server is not None:
            self.request(self.link.forget(server.name))

    def action_use_server(self, name: str | None = None) -> None:
        """Offer the lines that a client of a server needs, and the one that starts it: a key copies its line."""
        if (server := self.named(name)) is not None:
            self.run_worker(self._offer_lines(server), group="use", exclusive=True)

    async def _offer_lines(self, server: Server) -> None:
        from profiles.errors import InvalidProfileError

        lines = [
            UseLine("c", "curl", "asks it something", curl_line(server)),
            UseLine("s", "ssh -L", "brings it to the machine it runs on", ssh_line(server)),
            UseLine("b", "base URL", "points OpenAI's clients at it", base_url_line(server)),
        ]
        started, why_not = "", ""
        if server.foreign is not None:
            started = server.foreign.command
        else:
            try:
                content = await self.link.profile(server.name)
                started = await asyncio.to_thread(launch_line, server, content)
            except (GpuboxError, InvalidProfileError) as problem:
                why_not = str(problem)
        if started:
            lines.append(UseLine("l", "launch line", "starts its engine as it was started", started))
        self.push_screen(UseScreen(server.name, tuple(lines), why_not))


def by_hand(name: str, foreign: Foreign) -> ConflictError:
    """Say why a server that gpubox did not start is left alone."""
    text = f"{name} was started by hand (pid {foreign.pid}, {foreign.user}): gpubox does not touch it"
    return ConflictError(text, f"end it where it was started; gpubox reap {foreign.pid} does so after a question")


def running_text(server: Server) -> str:
    """Say which requests a server would have to let end, or lose, if it gave way; '' where none runs."""
    metrics = server.metrics
    if server.state is not ServerState.READY or isinstance(metrics, Missing) or isinstance(metrics.running, Missing):
        return ""
    if not metrics.running:
        return ""
    return f"It has {plural(metrics.running, 'running request')}: what does not end within its drain_s is aborted."


def in_use(server: Server, *, kills: bool = False) -> str:
    """Say who loses something when a server ends; '' where nobody can: it serves nothing, or nobody asked it lately."""
    if server.state is not ServerState.READY:
        return ""
    metrics = server.metrics
    if isinstance(metrics, Missing) or isinstance(metrics.running, Missing):
        return "It does not tell whether anybody uses it."
    if metrics.running and kills:
        return f"This kills {plural(metrics.running, 'running request')}."
    if metrics.running:
        return f"It has {plural(metrics.running, 'running request')}: what does not end within its drain_s is killed."
    if not isinstance(metrics.e2e, Missing) and metrics.e2e.count:
        return f"It answered {plural(metrics.e2e.count, 'request')} in the last minute: somebody uses it."
    if server.host not in LOOPBACK:
        return "Other machines can reach it: somebody may be using it."
    return ""
