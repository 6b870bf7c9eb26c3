"""Compare: one question to two servers at once, side by side, with the time and the tokens that each takes."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from backends.chat_answer import Answer
from backends.chat_conversations import Conversation, Conversations
from backends.errors import UsageError
from backends.snapshots import ModelKind, Server, Snapshot
from tui.format import NOTHING, count, fit, plural
from tui.keymap import KeyNames, key_of
from tui.screens.base import GpuboxScreen
from tui.themes import Palette, palette
from tui.widgets.chat_exchange import ExchangeView
from tui.widgets.chat_head import can_ask, why_not
from tui.widgets.chat_input import ChatInput

FRAME_S = 1 / 10


class Side(Vertical):
    """One server's half: its conversation, and why it cannot be asked where it cannot."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, classes="side")
        self.conversation: Conversation | None = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        yield VerticalScroll(classes="talk")
        yield Static(classes="why")

    def on_mount(self) -> None:
        """Follow the answer's end."""
        self.query_one(VerticalScroll).anchor()

    async def talk_with(self, conversation: Conversation | None) -> None:
        """Show this conversation."""
        if conversation is not self.conversation:
            self.conversation = conversation
            talk = self.query_one(VerticalScroll)
            await talk.remove_children()
            talk.anchor()

    async def catch_up(self, now: float) -> None:
        """Show what has come since."""
        if self.conversation is None:
            return
        talk = self.query_one(VerticalScroll)
        views = [child for child in talk.children if isinstance(child, ExchangeView)]
        exchanges = self.conversation.exchanges
        if len(views) < len(exchanges):
            new = [ExchangeView(exchange, "compare") for exchange in exchanges[len(views) :]]
            await talk.mount_all(new)
            views += new
        for view in views:
            view.catch_up(now)

    def tell(self, server: Server | None, colours: Palette, key: KeyNames) -> None:
        """Say which server it is, and why it cannot be asked where it cannot."""
        none = Text(f"no second server: {key('compare.other')} chooses one")
        reason = why_not(server, colours, key) if server is not None else none
        self.border_title = server.name if server is not None else NOTHING
        self.border_subtitle = fit(server.model, 40) if server is not None else ""
        why = self.query_one(".why", Static)
        why.display = reason is not None
        if reason is not None:
            why.update(reason)


class CompareScreen(GpuboxScreen):
    """The selected server on the left, another one on the right; each answers for itself, whatever the other does."""

    CSS_PATH = "../styles/chat_compare.tcss"
    AUTO_FOCUS = "ChatInput"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="compare.stop", tooltip="Stop both answers"),
        Binding("escape", "leave", "Leave the field", id="compare.leave", tooltip="Leave the field, for other keys"),
        Binding("escape", "back", "Back to chat", id="compare.back", tooltip="Back to the chat"),
        Binding("enter,a", "write", "Write", id="compare.write", tooltip="Write a question for both"),
        Binding("o,ctrl+o", "other", "Other server", id="compare.other", tooltip="Choose the second server"),
        Binding("r,ctrl+r", "again", "Ask again", id="compare.again", tooltip="Ask both the last question again"),
        Binding("t,ctrl+t", "thoughts", "Thoughts", id="compare.thoughts", tooltip="Show or fold what they thought"),
    ]

    def __init__(self, conversations: Conversations, origin: Conversation) -> None:
        """`origin` lends its system prompt and settings; the conversations here stand in the list like all others."""
        super().__init__()
        self._conversations = conversations
        self._origin = origin
        self._of: dict[str, Conversation] = {}
        self._names: tuple[str | None, str | None] = (None, None)
        self._is_catching_up = False
        self._was_asked = self._shows_thoughts = False
        self._told: tuple[Text, bool] | None = None

    def compose(self) -> ComposeResult:
        """Make the parts."""
        with Horizontal(id="sides"):
            yield Side(id="left")
            yield Side(id="right")
        yield Static(id="result")
        yield ChatInput(self._send, id="question")

    def on_mount(self) -> None:
        """Draw answers at an even pace, however fast they come."""
        self.set_interval(FRAME_S, self._catch_up)

    def explained(self) -> tuple[str, ...]:
        """Return the figures that are compared."""
        return ("ttft", "itl", "generation_tokens_per_s", "max_model_len")

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self.query_one("#left", Side), self.query_one("#right", Side)

    def _servers(self) -> tuple[Server | None, Server | None]:
        left, right = self._names
        return self.gpubox.named(left) if left else None, self.gpubox.named(right) if right else None

    def _others(self) -> list[Server]:
        """Return the servers that can be the second one, those first that can be asked now."""
        chatty = [one for one in self.gpubox.servers if one.kind is not ModelKind.EMBEDDING and one is not self.server]
        return sorted(chatty, key=lambda one: not can_ask(one))

    def show(self, snapshot: Snapshot, server: Server | None) -> None:
        """Show the selected server on the left, and on the right the other one, the first that can be asked."""
        left, right = server.name if server else None, self._names[1]
        others = [one.name for one in self._others()]
        if right is None or right == left or right not in [one.name for one in snapshot.servers]:
            right = others[0] if others else None
        self._names = (left, right)
        if len(others) > 1 and not self._was_asked:
            self._was_asked = True
            self.call_after_refresh(self.action_other)
        self._tell()
        self.call_later(self._catch_up)

    def _conversation(self, name: str) -> Conversation:
        if name not in self._of:
            made = self._conversations.new(name, title="Compared", shown=False)
            made.system, made.sampling = self._origin.system, self._origin.sampling
            self._of[name] = made
        return self._of[name]

    async def _catch_up(self) -> None:
        # A timer runs beside the screen's own messages: one of them at a time, the next frame brings what is left out.
        if self._is_catching_up or not self.is_current:
            return
        self._is_catching_up = True
        try:
            for side, name in zip(self._sides, self._names, strict=True):
                await side.talk_with(self._of.get(name) if name else None)
                await side.catch_up(self.gpubox.now())
            result, is_answering = self._result(), self._is_answering
            if (result, is_answering) != self._told and self.display:
                self._told = (result, is_answering)
                self.query_one("#result", Static).update(result)
                self.refresh_bindings()
        finally:
            self._is_catching_up = False

    def _tell(self) -> None:
        colours = palette(self.app)
        for side, server in zip(self._sides, self._servers(), strict=True):
            side.tell(server, colours, self._key)
        question = self.query_one(ChatInput)
        ways = f"{self._key('question.send')} sends · {self._key('question.line')} new line"
        writing = f"Ask both · {ways} · {self._key('compare.leave')} leaves this field"
        question.placeholder = writing if question.has_focus else f"Press {self._key('compare.write')} to write"
        self.refresh_bindings()

    def _key(self, name: str) -> str:
        return key_of(self.app, name)

    def on_descendant_focus(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    def on_descendant_blur(self) -> None:
        """Say in the field which keys work now."""
        self._tell()

    def _answers(self) -> tuple[Answer | None, Answer | None]:
        """Return the answers to the last question, as far as both sides were asked it."""
        left, right = (self._of.get(name) if name else None for name in self._names)
        return _last(left), _last(right)

    def _result(self) -> Text:
        """Set the figures of the two last answers side by side."""
        colours = palette(self.app)
        answers = self._answers()
        if not any(answers):
            return Text("Both are asked at once; each goes on whatever becomes of the other.", colours.dim)
        rows = [
            ("TTFT s", [f"{one.ttft_s:.2f}" if one and one.ttft_s is not None else NOTHING for one in answers]),
            ("tok/s", [_rate(one) for one in answers]),
            ("tokens", [f"{one.completion_tokens:,}" if one else NOTHING for one in answers]),
            ("whole s", [f"{one.duration_s:.2f}" if one else NOTHING for one in answers]),
        ]
        names = [fit(name or NOTHING, 22) for name in self._names]
        text = Text(f"{'':<24}" + "".join(f"{title:>13}" for title, _ in rows), colours.dim, no_wrap=True)
        for side, name in enumerate(names):
            text.append(f"\n{name:<24}", f"bold {colours.text}")
            for _, figures in rows:
                text.append(f"{figures[side]:>13}", colours.text)
        return text

    @property
    def _pairs(self) -> list[tuple[Server, Conversation]]:
        return [(server, self._conversation(server.name)) for server in self._servers() if server is not None]

    @property
    def _is_answering(self) -> bool:
        return any(one.is_answering for one in self._of.values())

    def _send(self, text: str) -> bool:
        pairs = [(server, talk) for server, talk in self._pairs if can_ask(server)]
        if not text.strip() or self._is_answering or len(self._pairs) < 2:
            self.app.bell()
            return False
        if len(pairs) < 2:
            missing = next(server for server in self._servers() if server and not can_ask(server))
            hint = f"{self._key('compare.other')} chooses another server"
            self.gpubox.complain(UsageError(f"{missing.name} cannot be asked now", hint))
            return False
        for server, talk in pairs:
            self._conversations.ask(talk, text.strip("\n"), server.kind)
        self.call_later(self._catch_up)
        return True

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only the keys that do something now."""
        question = self.query_one(ChatInput) if self.is_mounted else None
        is_writing = question is not None and question.has_focus
        if action == "stop":
            return self._is_answering
        if action == "leave":
            return is_writing
        if action in ("write", "back"):
            return not is_writing
        if action == "other":
            return len(self._others()) > 1
        if action == "thoughts":
            return any(one.reasoning for talk in self._of.values() for one in talk.exchanges)
        if action == "again":
            asked = [one for one in (self._of.get(name) for name in self._names if name) if one and one.exchanges]
            return len(asked) == 2 and not self._is_answering
        return super().check_action(action, parameters)

    def action_stop(self) -> None:
        """Stop both answers."""
        for conversation in self._of.values():
            self._conversations.stop(conversation)

    def action_leave(self) -> None:
        """Leave the field, so that keys steer again."""
        self.set_focus(None)

    def action_back(self) -> None:
        """Go back to the chat."""
        self.dismiss()

    def action_write(self) -> None:
        """Go to the field."""
        self.query_one(ChatInput).focus()

    def action_again(self) -> None:
        """Ask both the last question again."""
        for _, conversation in self._pairs:
            prompt = conversation.exchanges[-1].prompt
            self._conversations.ask(conversation, prompt, conversation.exchanges[-1].kind)
        self.call_later(self._catch_up)

    def action_thoughts(self) -> None:
        """Show or fold what the models thought."""
        self._shows_thoughts = not self._shows_thoughts
        for view in self.query(ExchangeView):
            view.show_thoughts(whole=self._shows_thoughts)

    def action_other(self) -> None:
        """Choose the second server."""
        from tui.screens.chooser import ChooserScreen

        def take(places: tuple[int, ...] | None) -> None:
            if places:
                self._names = (self._names[0], others[places[0]].name)
                self._tell()
                self.call_later(self._catch_up)

        others = self._others()
        if others:
            title = f"Compare {self._names[0]} with one of {plural(len(others), 'server')}"
            rows = [f"{one.name}  {one.state.value} · {one.model}" for one in others]
            self.app.push_screen(ChooserScreen(title, rows), take)


def _last(conversation: Conversation | None) -> Answer | None:
    return conversation.exchanges[-1].answer if conversation is not None and conversation.exchanges else None


def _rate(answer: Answer | None) -> str:
    if answer is None or answer.tokens_per_s is None:
        return NOTHING
    return count(answer.tokens_per_s) + (" overall" if answer.is_overall_rate else "")
