"""Chat: a conversation with the selected server's model, one a server, kept while gpubox runs."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from backends.snapshots import ModelKind, Server, ServerState, Snapshot
from tui.format import count, fit
from tui.screens.base import GpuboxScreen
from tui.themes import STATES, Palette, palette
from tui.widgets.chat_conversations import Conversation, Conversations
from tui.widgets.chat_exchange import ExchangeView
from tui.widgets.chat_input import ChatInput
from tui.widgets.status_bar import describe

MODE = "chat"
FRAME_S = 1 / 20
ANSWERS = (ServerState.READY, ServerState.UNRESPONSIVE)
WRITING = "Ask · Enter sends · Ctrl+J new line · Esc leaves this field"
READING = "Press i or Enter to write"
NOT_NOW = "Not yet"
KINDS = {
    ModelKind.UNKNOWN: "",
    ModelKind.CHAT: "chat",
    ModelKind.COMPLETION: "completions only: your text is continued as it is",
    ModelKind.EMBEDDING: "embeddings only: it makes a vector of your text",
}


class ChatScreen(GpuboxScreen):
    """The conversation above, the question below; Esc stops an answer, or leaves the field."""

    CSS_PATH = "../styles/chat.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer that is being written"),
        Binding("escape", "leave", "Leave the field", id="chat.leave", tooltip="Leave the field, for the other keys"),
        Binding("i,enter", "write", "Write", id="chat.write", tooltip="Write a question"),
        Binding("ctrl+n,ctrl+l", "begin_anew", "New chat", id="chat.new", tooltip="Begin a new conversation"),
        Binding("ctrl+t", "thoughts", "Thoughts", id="chat.thoughts", tooltip="Show or fold what the model thought"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._conversations: Conversations | None = None
        self._shown: Conversation | None = None
        self._talks: dict[Conversation, VerticalScroll] = {}
        self._shows_thoughts = False
        self._was_answering = False
        self._is_catching_up = False
        self._was_left = True

    @property
    def conversations(self) -> Conversations:
        """All conversations of this run; workers of the app's write their answers, whatever screen is on top."""
        if self._conversations is None:
            self._conversations = Conversations(self.gpubox, self.gpubox.link.connection, self.gpubox.now)
        return self._conversations

    def compose(self) -> ComposeResult:
        """Make the parts; conversations are added as they are shown."""
        yield Static(id="head")
        yield Container(id="talks")
        yield Static("Waiting for the keeper…", id="empty")
        yield Static(id="state")
        yield ChatInput(self._send, id="question")

    def on_mount(self) -> None:
        """Draw answers at an even pace, however fast they come."""
        self.set_interval(FRAME_S, self._catch_up)

    def on_screen_resume(self) -> None:
        """Go to the field where one can write: whoever comes here wants to ask, and a 'q' must not quit."""
        if self._was_left and self.gpubox.snapshot is not None and why_not(self.server, palette(self.app)) is None:
            self.query_one(ChatInput).focus()

    def on_screen_suspend(self) -> None:
        """Tell going elsewhere from a sheet that is opened above: after that the focus stays where it was."""
        self._was_left = self.app.current_mode != MODE

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the conversation with the selected server, and whether one can ask it."""
        conversation = self.conversations.of(server.name) if server else None
        if conversation is not self._shown:
            question = self.query_one(ChatInput)
            if self._shown is not None:
                self._shown.draft = question.text
            self._shown = conversation
            question.write(conversation.draft if conversation else "")
            self.call_later(self._catch_up)
        self._tell()

    async def _catch_up(self) -> None:
        """Show what has come of the conversation on screen; all others wait until they are."""
        # A timer runs beside the screen's own messages: one of them at a time, the next frame brings what is left out.
        if self._is_catching_up or not self.is_current or self._shown is None:
            return
        self._is_catching_up = True
        try:
            await self._show_news(self._shown)
        finally:
            self._is_catching_up = False

    async def _show_news(self, shown: Conversation) -> None:
        talk = self._talks.get(shown)
        if talk is None:
            talk = self._talks[shown] = VerticalScroll(classes="talk")
            await self.query_one("#talks").mount(talk)
            talk.anchor()
        for one in self._talks.values():
            if one.display != (one is talk):
                one.display = one is talk
        views = [child for child in talk.children if isinstance(child, ExchangeView)]
        if len(views) < len(shown.exchanges):
            new = [ExchangeView(exchange) for exchange in shown.exchanges[len(views) :]]
            await talk.mount_all(new)
            views += new
            self._tell()
        for view in views:
            await view.catch_up(self.gpubox.now())
        if shown.is_answering != self._was_answering:
            self._was_answering = shown.is_answering
            self.refresh_bindings()
            self._tell()

    def on_descendant_focus(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    def on_descendant_blur(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    def _tell(self) -> None:
        """Say whom one talks to, and whether and how one can ask."""
        server, colours = self.server, palette(self.app)
        conversation, question = self._shown, self.query_one(ChatInput)
        reason = why_not(server, colours)
        self.query_one("#head", Static).update(head(server, conversation, self.app.size.width - 2, colours))
        state = self.query_one("#state", Static)
        state.set_class(reason is not None and server is not None, "-shown")
        if reason is not None:
            state.update(reason)
        # One who is writing goes on writing: a field that vanished would make commands of what is typed into it.
        question.disabled = reason is not None and not question.has_focus
        question.placeholder = WRITING if question.has_focus else NOT_NOW if reason is not None else READING
        is_empty = conversation is None or not conversation.exchanges
        self.query_one("#empty").display = is_empty
        self.query_one("#talks").display = not is_empty
        if is_empty:
            self.query_one("#empty", Static).update(invitation(server, colours))
        if conversation is not None:
            question.former = [exchange.prompt for exchange in conversation.exchanges]
        self.refresh_bindings()

    def _send(self, text: str) -> bool:
        """Ask, unless that cannot be done now; returns whether it was."""
        server, conversation = self.server, self._shown
        if server is None or conversation is None or not text.strip():
            return False
        if why_not(server, palette(self.app)) is not None or conversation.is_answering:
            self.app.bell()
            return False
        self.conversations.ask(conversation, text.strip("\n"), server.kind)
        if conversation in self._talks:
            self._talks[conversation].anchor()
        self.call_later(self._catch_up)
        return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only the keys that do something now."""
        conversation = self._shown
        if action == "stop":
            return conversation is not None and conversation.is_answering
        if action == "leave":
            return self.query_one(ChatInput).has_focus
        if action == "write":
            question = self.query_one(ChatInput)
            return not question.has_focus and not question.disabled
        if action == "begin_anew":
            return conversation is not None and bool(conversation.exchanges)
        if action == "thoughts":
            return conversation is not None and any(exchange.reasoning for exchange in conversation.exchanges)
        return True

    def action_stop(self) -> None:
        """Stop the answer that is being written."""
        if self._shown is not None:
            self.conversations.stop(self._shown)

    def action_leave(self) -> None:
        """Leave the field, so that keys steer again."""
        if self._shown in self._talks:
            self._talks[self._shown].focus()
        if self.query_one(ChatInput).has_focus:
            self.set_focus(None)

    def action_write(self) -> None:
        """Go to the field."""
        self.query_one(ChatInput).focus()

    def action_begin_anew(self) -> None:
        """Forget the conversation, stopping the answer that is being written."""
        if self._shown is not None:
            self.conversations.begin_anew(self._shown.server)
            talk = self._talks.pop(self._shown, None)
            if talk is not None:
                talk.remove()
            self._shown = self.conversations.of(self._shown.server)
            self._tell()

    def action_thoughts(self) -> None:
        """Show or fold what the model thought before it answered."""
        self._shows_thoughts = not self._shows_thoughts
        for view in self.query(ExchangeView):
            view.show_thoughts(whole=self._shows_thoughts)


def why_not(server: Server | None, colours: Palette) -> Text | None:
    """Return why the server cannot be asked now; None where it can."""
    if server is None:
        return Text("there is no server")
    if server.state in ANSWERS:
        return None
    sign, _ = STATES[server.state]
    text = Text.assemble((f"{sign} {describe(server)}", colours.state(server.state)))
    if server.state in (ServerState.FAILED, ServerState.LOST):
        return text.append(f": {server.cause or 'see its log'} · 3 shows its log", colours.text)
    if server.state is ServerState.STOPPED:
        return text.append(" · press 2 to start it", colours.text)
    if server.state in (ServerState.STARTING, ServerState.QUEUED, ServerState.WAKING, ServerState.BACKOFF):
        return text.append(" · you can ask as soon as it is ready", colours.text)
    return text.append(" · it takes no questions now", colours.text)


def head(server: Server | None, conversation: Conversation | None, width: int, colours: Palette) -> Text:
    """Say whom one talks to, and how much has been said."""
    if server is None:
        return Text()
    text = Text.assemble((server.name, f"bold {colours.text}"), no_wrap=True)
    kind = KINDS[server.kind]
    if kind:
        text.append(f"  {kind}", colours.accent if server.kind is not ModelKind.CHAT else colours.dim)
    if server.max_model_len and server.kind is not ModelKind.EMBEDDING:
        text.append(f"  context {count(server.max_model_len)}", colours.dim)
    answers = [exchange.answer for exchange in conversation.exchanges if exchange.answer] if conversation else []
    used = (answers[-1].prompt_tokens or 0) + answers[-1].completion_tokens if answers else 0
    if used and server.kind is ModelKind.CHAT:
        text.append(f", {count(used)} used", colours.dim)
    room = width - text.cell_len - 2
    if answers and room > len(server.model):
        text.append(f"  {fit(server.model, room)}", colours.dim)
    return text


def invitation(server: Server | None, colours: Palette) -> Text:
    """Say what one can do where nothing was said yet."""
    if server is None:
        return Text("There is no server to talk to.\n\nPress 2, choose a profile and start it.")
    what = {
        ModelKind.COMPLETION: "Write the beginning of a text: the model goes on with it.",
        ModelKind.EMBEDDING: "Write a text: you see its vector's dimensions and norm.",
    }.get(server.kind, "Ask it something.")
    return Text.assemble(
        (f"{server.model}\n", f"bold {colours.text}"),
        (f"{what}\n\n", colours.text),
        ("The conversation is kept while gpubox runs; answers go on while you look elsewhere.", colours.dim),
    )
