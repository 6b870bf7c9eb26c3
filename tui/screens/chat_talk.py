"""The chat as it is seen: the conversation with the selected server, drawn as its answers come, and the field below."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widgets import TextArea
from textual.worker import Worker

from backends.chat_commands import hints
from backends.chat_conversations import Conversation, Conversations
from backends.snapshots import Server, Snapshot
from tui.keymap import key_of, live_keys, spoken
from tui.screens.base import GpuboxScreen
from tui.themes import palette
from tui.widgets.chat_exchange import ExchangeView, pictured
from tui.widgets.chat_head import can_ask, head, hint_text, invitation, why_not
from tui.widgets.chat_input import ChatInput
from tui.widgets.chat_list import ConversationList
from tui.widgets.live_text import LiveText

MODE = "chat"
FRAME_S = 1 / 10
LIST_CELLS = 160
"""From this width on the list of conversations stands at the side."""

NOT_NOW = "Not yet"


class TalkScreen(GpuboxScreen):
    """What is shown of a conversation; hidden, it does nothing, and catches up once it is seen again.

    Below stands the field `#question`, a ChatInput, which is made by the screen that takes what is written.
    """

    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self._conversations: Conversations | None = None
        self._shown: Conversation | None = None
        self._talks: dict[Conversation, VerticalScroll] = {}
        self._marked: int | None = None
        self._shows_thoughts = False
        self._shows_help = False
        self._was_answering = False
        self._is_catching_up = False
        self._was_left = True

    @property
    def conversations(self) -> Conversations:
        """All conversations of this run; workers of the app's write their answers, whatever screen is on top."""
        if self._conversations is None:
            self._conversations = Conversations(self._run, self.gpubox.link.connection, self.gpubox.now)
        return self._conversations

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> Worker[None]:
        return self.app.run_worker(work, name=name, group=name)

    def compose(self) -> ComposeResult:
        """Make the parts; conversations are added as they are shown."""
        yield LiveText(id="head")
        with Horizontal(id="body"):
            yield ConversationList(id="chats")
            yield Container(id="talks")
            yield LiveText(id="empty", wraps=True)
        yield LiveText(id="state", wraps=True)
        yield LiveText(id="hint")
        yield LiveText(id="attached", wraps=True)

    def on_mount(self) -> None:
        """Draw answers at an even pace, however fast they come."""
        self.query_one("#empty", LiveText).show(Text("Waiting for the keeper…"))
        self.set_interval(FRAME_S, self._catch_up)

    def on_resize(self) -> None:
        """Show the list of conversations where there is room for it."""
        self.set_class(self.app.size.width >= LIST_CELLS, "-lists")

    def on_screen_resume(self) -> None:
        """Go to the field where one can write: whoever comes here wants to ask, and a 'q' must not quit."""
        if self._was_left and self.gpubox.snapshot is not None and can_ask(self.server):
            self.query_one(ChatInput).focus()

    def on_screen_suspend(self) -> None:
        """Tell going elsewhere from a sheet that is opened above: after that the focus stays where it was."""
        self._was_left = self.app.current_mode != MODE

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the current conversation with the selected server, and whether one can ask it."""
        conversation = self.conversations.current(server.name) if server else None
        if conversation is not self._shown:
            question = self.query_one(ChatInput)
            if self._shown is not None:
                self._shown.draft = question.text
            self._shown, self._marked = conversation, None
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
        same = 0
        while same < min(len(views), len(shown.exchanges)) and views[same].exchange is shown.exchanges[same]:
            same += 1
        if same < max(len(views), len(shown.exchanges)):
            if views[same:]:
                await talk.remove_children(views[same:])
            new = [ExchangeView(exchange) for exchange in shown.exchanges[same:]]
            await talk.mount_all(new)
            views = views[:same] + new
            self._show_mark()
            self._tell()
        for view in views:
            view.catch_up(self.gpubox.now())
        if shown.is_answering != self._was_answering:
            self._was_answering = shown.is_answering
            self._tell()

    @property
    def _views(self) -> list[ExchangeView]:
        """The views of the conversation on screen."""
        talk = self._talks.get(self._shown) if self._shown is not None else None
        return [child for child in talk.children if isinstance(child, ExchangeView)] if talk is not None else []

    def _show_mark(self) -> None:
        for number, view in enumerate(self._views):
            view.mark(marked=number == self._marked)
            if number == self._marked:
                view.scroll_visible(top=True, animate=False)

    def on_descendant_focus(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    def on_descendant_blur(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    @on(TextArea.Changed, "#question")
    def _typed(self) -> None:
        self._shows_help = False
        self._hint()

    def _hint(self) -> None:
        """Say what can be typed after a slash."""
        hint, text = self.query_one("#hint", LiveText), "/" if self._shows_help else self.query_one(ChatInput).text
        rows = hints(text, self._shown.sampling) if self._shown is not None and text.startswith("/") else []
        hint.set_class(bool(rows), "-shown")
        if rows:
            hint.show(hint_text(rows, self.app.size.width - 4, palette(self.app)))

    def _tell(self) -> None:
        """Say whom one talks to, and whether and how one can ask."""
        server, colours = self.server, palette(self.app)
        conversation, question = self._shown, self.query_one(ChatInput)
        reason = why_not(server, colours, self._key)
        chats = self.conversations.all(server.name) if server is not None else ()
        said = head(server, conversation, len(chats), self.app.size.width - 2, colours)
        self.query_one("#head", LiveText).show(said)
        self.query_one(ConversationList).show(chats, conversation)
        state = self.query_one("#state", LiveText)
        state.set_class(reason is not None and server is not None, "-shown")
        if reason is not None:
            state.show(reason)
        # One who is writing goes on writing: a field that vanished would make commands of what is typed into it.
        question.disabled = reason is not None and not question.has_focus
        question.placeholder = NOT_NOW if reason is not None and not question.has_focus else self._keys_of_field()
        is_empty = conversation is None or not conversation.exchanges
        self.query_one("#empty").display = is_empty
        self.query_one("#talks").display = not is_empty
        if is_empty:
            self.query_one("#empty", LiveText).show(invitation(server, colours, self._key))
        if conversation is not None:
            question.remember([exchange.prompt for exchange in conversation.exchanges])
        self._tell_attached(conversation)
        self.refresh_bindings()

    def _key(self, name: str) -> str:
        return key_of(self.app, name)

    def _keys_of_field(self) -> str:
        """Say which keys write, send and leave."""
        if self.query_one(ChatInput).has_focus:
            ways = f"{self._key('question.send')} sends · {self._key('question.line')} new line · / commands"
            return f"Ask · {ways} · {self._key('chat.leave')} leaves this field"
        if self._marked is None:
            return f"Press {self._key('chat.write')} to write"
        edits = live_keys(self.app, "chat.edit")
        writes = [key for key in live_keys(self.app, "chat.write") if key not in edits]
        anew = f" · {spoken(writes[0])} writes a new one" if writes else ""
        return f"{self._key('chat.edit')} edits question {self._marked + 1}{anew}"

    def _tell_attached(self, conversation: Conversation | None) -> None:
        """Say what the question that is being written goes with."""
        colours, lines = palette(self.app), []
        if conversation is not None and conversation.edited is not None:
            ways = f"{self._key('question.send')} asks it in a branch · {self._key('chat.give_up')} gives it up"
            lines.append(Text(f"✎ question {conversation.edited + 1} anew: {ways}", colours.warn))
        if conversation is not None and conversation.image is not None:
            lines.append(Text(f"{pictured(conversation.image)} goes with it · /image takes it back", colours.accent))
        attached = self.query_one("#attached", LiveText)
        attached.set_class(bool(lines), "-shown")
        if lines:
            attached.show(Text("\n").join(lines))
