"""Chat: conversations with the selected server's model, kept while gpubox runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from backends.chat_commands import Command, parsed
from backends.chat_conversations import Conversation
from backends.chat_files import KINDS, as_text, save
from backends.chat_image import read_image
from backends.chat_settings import assigned
from backends.errors import GpuboxError, UsageError
from backends.readonly import refusal
from backends.snapshots import ModelKind, Server
from tui.format import plural
from tui.screens.chat_listed import ListedScreen
from tui.widgets.chat_head import can_ask
from tui.widgets.chat_input import ChatInput

BEFORE_TOOLTIP = "Choose the question before, to edit it or to ask it again"


class ChatScreen(ListedScreen):
    """The conversation above, the question below; what is typed after a slash steers, keys do the same."""

    CSS_PATH = "../styles/chat.tcss"
    CHANGES = frozenset({"save"})
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer that is being written"),
        Binding("escape", "give_up", "Give up", id="chat.give_up", tooltip="Leave the question as it was asked"),
        Binding("escape", "leave", "Leave the field", id="chat.leave", tooltip="Leave the field, for the other keys"),
        Binding("escape", "unmark", "To the end", id="chat.unmark", tooltip="Choose no question, go to the end"),
        Binding("enter", "edit", "Edit", id="chat.edit", tooltip="Ask the chosen question anew, in a branch"),
        Binding("enter,a", "write", "Write", id="chat.write", tooltip="Write a question"),
        Binding("slash", "command", "Command", key_display="/", id="chat.command", tooltip="Type a command"),
        Binding("ctrl+n", "begin_anew", "New chat", id="chat.new", tooltip="Begin a new conversation"),
        Binding("l,ctrl+o", "chats", "Chats", id="chat.list", tooltip="Show, rename or delete conversations"),
        Binding("p", "mark(-1)", "Edit earlier", id="chat.before", tooltip=BEFORE_TOOLTIP),
        Binding("n", "mark(1)", "Later", show=False, id="chat.after", tooltip="Choose the question after"),
        Binding("r,ctrl+r", "again", "Ask again", id="chat.again", tooltip="Ask the last or the chosen question again"),
        Binding(
            "less_than_sign",
            "turn_over(-1)",
            "Answer before",
            show=False,
            id="chat.answer_before",
            key_display="<",
            tooltip="Show the answer before to the last question",
        ),
        Binding(
            "greater_than_sign",
            "turn_over(1)",
            "Answer after",
            show=False,
            id="chat.answer_after",
            key_display=">",
            tooltip="Show the next answer to the last question",
        ),
        Binding("o,ctrl+g", "settings", "Settings", id="chat.settings", tooltip="System prompt and sampling settings"),
        Binding("s", "save('md')", "Save", id="chat.save", tooltip="Save the conversation as Markdown"),
        Binding("S", "save('jsonl')", "Save JSONL", show=False, id="chat.save_jsonl", tooltip="Save it as JSON lines"),
        Binding("c", "compare", "Compare", id="chat.compare", tooltip="Ask two servers the same at once"),
        Binding("t,ctrl+t", "thoughts", "Thoughts", id="chat.thoughts", tooltip="Show or fold what the model thought"),
        Binding("y", "copy", "Copy", show=False, id="chat.copy", tooltip="Copy the last or the chosen answer"),
        Binding("j", "scroll(1)", "Down", show=False, id="chat.down", tooltip="Scroll down"),
        Binding("k", "scroll(-1)", "Up", show=False, id="chat.up", tooltip="Scroll up"),
    ]

    def compose(self) -> ComposeResult:
        """Make the parts, and the field below them."""
        yield from super().compose()
        yield ChatInput(self._send, id="question")

    def explained(self) -> tuple[str, ...]:
        """Return the figures below an answer, and the context's in the head."""
        return ("ttft", "itl", "generation_tokens_per_s", "max_model_len") if self.server is not None else ()

    # What is sent

    def _send(self, text: str) -> bool:
        server, conversation = self.server, self._shown
        if server is None or conversation is None or not text.strip():
            return False
        try:
            command = parsed(text)
            if command is not None:
                return self._obey(command, server, conversation)
        except GpuboxError as problem:
            self.gpubox.complain(problem)
            return False
        if not can_ask(server) or conversation.is_answering:
            self.app.bell()
            return False
        image, edited = conversation.image, conversation.edited
        conversation.image = conversation.edited = None
        if edited is not None and edited < len(conversation.exchanges):
            # Shown at once: what is typed from now on is the branch's.
            self._shown = conversation = self.conversations.branch(conversation, edited)
        self._marked = None
        self.conversations.ask(conversation, text.strip("\n"), server.kind, image)
        if conversation in self._talks:
            self._talks[conversation].anchor()
        self.call_later(self._catch_up)
        return True

    def _obey(self, command: Command, server: Server, conversation: Conversation) -> bool:
        """Do what was typed after the slash; returns whether the field shall be emptied."""
        if command.name == "image" and command.rest:
            self._take_image(server, conversation, command.rest)
            return False
        if command.name == "image":
            conversation.image = None
        elif command.name == "system":
            conversation.system = command.rest
        elif command.name == "set" and command.rest:
            conversation.sampling = assigned(conversation.sampling, command.rest)
        elif command.name == "set":
            self.action_settings()
        elif command.name == "save":
            if self.gpubox.readonly:
                raise refusal("save")
            self._save(conversation, server, command.rest or "md")
        elif command.name == "new":
            self.conversations.new(server.name)
            self.call_later(self._changed)
        elif command.name == "help":
            self.call_later(self._help)
        self.call_later(self._tell)
        return True

    def _help(self) -> None:
        self._shows_help = True
        self._hint()

    def _take_image(self, server: Server, conversation: Conversation, path: str) -> None:
        if server.kind in (ModelKind.COMPLETION, ModelKind.EMBEDDING):
            raise UsageError(f"{server.name} takes no pictures", "it reads text alone; ask a vision model")
        question = self.query_one(ChatInput)
        typed = question.text

        async def attach() -> None:
            conversation.image = await asyncio.to_thread(read_image, path)
            if question.text == typed:
                question.write("")
            self._tell()

        self._do(attach())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self.gpubox.request(work)

    def _save(self, conversation: Conversation, server: Server, kind: str) -> None:
        if kind not in KINDS:
            raise UsageError(f"a chat cannot be saved as {kind!r}", f"there are {' and '.join(KINDS)}")
        if not conversation.exchanges:
            raise UsageError("there is nothing to save yet", "ask something first")
        name, text = f"{server.name}-{conversation.name}", as_text(conversation, server.model, kind)

        async def write() -> None:
            path = await asyncio.to_thread(save, name, text, kind, self.gpubox.now())
            self.notify(str(path), title=f"saved as {KINDS[kind]}", timeout=10, markup=False)

        self._do(write())

    # What keys do

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only the keys that do something now."""
        conversation = self._shown
        exchanges = conversation.exchanges if conversation is not None else []
        question = self.query_one(ChatInput) if self.is_mounted else None
        last = exchanges[-1] if exchanges else None
        is_ready = self.is_mounted and can_ask(self.server)
        if conversation is None or question is None:
            return action not in OWN and super().check_action(action, parameters)
        at = len(exchanges) if self._marked is None else self._marked
        offers = {
            "stop": conversation.is_answering,
            "give_up": conversation.edited is not None,
            "leave": question.has_focus,
            "unmark": self._marked is not None,
            "edit": self._marked is not None and not question.disabled,
            "write": not question.has_focus and not question.disabled,
            "command": not question.has_focus and not question.disabled,
            "begin_anew": bool(exchanges),
            "chats": bool(exchanges) or len(self.conversations.all(conversation.server)) > 1,
            "mark": 0 <= at + (1 if parameters == (1,) else -1) < len(exchanges),
            "again": last is not None and not last.is_open and is_ready,
            "turn_over": last is not None and self._can_turn(parameters == (1,)),
            "save": bool(exchanges),
            "compare": len(self.askable()) > 1 and is_ready,
            "thoughts": any(exchange.reasoning for exchange in exchanges),
            "copy": any(exchange.text for exchange in exchanges),
            "scroll": bool(exchanges),
        }
        return offers.get(action, True) and super().check_action(action, parameters)

    def _can_turn(self, later: bool) -> bool:
        if self._shown is None or self._shown.is_answering:
            return False
        last = self._shown.exchanges[-1]
        return last is not (last.attempts[-1] if later else last.attempts[0])

    def askable(self) -> list[Server]:
        """Return the servers that can be asked something now."""
        kinds = (ModelKind.EMBEDDING,)
        return [one for one in self.gpubox.servers if can_ask(one) and one.kind not in kinds]

    def action_stop(self) -> None:
        """Stop the answer that is being written."""
        if self._shown is not None:
            self.conversations.stop(self._shown)

    def action_give_up(self) -> None:
        """Leave the question that is being edited as it was asked."""
        if self._shown is not None:
            self._shown.edited = self._shown.image = None
            self.query_one(ChatInput).write("")
            self._tell()

    def action_leave(self) -> None:
        """Leave the field, so that keys steer again."""
        if self._shown in self._talks:
            self._talks[self._shown].focus()
        if self.query_one(ChatInput).has_focus:
            self.set_focus(None)

    def action_unmark(self) -> None:
        """Choose no question."""
        self._marked = None
        self._show_mark()
        if self._shown in self._talks:
            self._talks[self._shown].scroll_end(animate=False)
        self._tell()

    def action_mark(self, step: int) -> None:
        """Choose the question before or after."""
        if self._shown is not None:
            self._marked = (len(self._shown.exchanges) if self._marked is None else self._marked) + step
            self._show_mark()
            self._tell()

    def action_edit(self) -> None:
        """Bring the chosen question back into the field."""
        if self._shown is None or self._marked is None:
            return
        exchange = self._shown.exchanges[self._marked]
        self._shown.edited, self._shown.image = self._marked, exchange.image
        question = self.query_one(ChatInput)
        question.write(exchange.prompt)
        question.focus()
        self._tell()

    def action_write(self) -> None:
        """Go to the field."""
        self.query_one(ChatInput).focus()

    def action_command(self) -> None:
        """Go to the field, with a slash in it."""
        question = self.query_one(ChatInput)
        question.focus()
        if not question.text:
            question.write("/")

    def action_begin_anew(self) -> None:
        """Begin a new conversation; this one stays in the list."""
        if self._shown is not None:
            self.conversations.new(self._shown.server)
            self._changed()

    def action_again(self) -> None:
        """Ask the last question again; an earlier one that is chosen, in a branch."""
        shown, marked = self._shown, self._marked
        if shown is None or not shown.exchanges:
            return
        if marked is not None and marked < len(shown.exchanges) - 1:
            former = shown.exchanges[marked]
            branch = self.conversations.branch(shown, marked)
            self.conversations.ask(branch, former.prompt, former.kind, former.image)
            self._changed()
        else:
            self.conversations.ask_again(shown)
        self._marked = None
        if self._shown in self._talks:
            self._talks[self._shown].anchor()
        self.call_later(self._catch_up)

    def action_turn_over(self, step: int) -> None:
        """Show an earlier or later answer to the last question."""
        if self._shown is not None and self.conversations.turn_over(self._shown, step):
            self.call_later(self._catch_up)
            self._tell()

    def action_settings(self) -> None:
        """Change the system prompt and how the model chooses tokens."""
        from tui.screens.chat_settings import ChatSettingsScreen, Settings

        shown = self._shown

        def take(settings: Settings | None) -> None:
            if settings is not None and shown is not None:
                shown.system, shown.sampling = settings
                self._tell()

        if shown is not None:
            self.app.push_screen(ChatSettingsScreen(shown.system, shown.sampling), take)

    def action_save(self, kind: str) -> None:
        """Save the conversation to a new file."""
        if self._shown is not None and self.server is not None:
            try:
                self._save(self._shown, self.server, kind)
            except GpuboxError as problem:
                self.gpubox.complain(problem)

    def action_compare(self) -> None:
        """Ask two servers the same at once."""
        from tui.screens.compare import CompareScreen

        if self._shown is not None:
            self.app.push_screen(CompareScreen(self.conversations, self._shown))

    def action_thoughts(self) -> None:
        """Show or fold what the model thought before it answered."""
        self._shows_thoughts = not self._shows_thoughts
        for view in self._views:
            view.show_thoughts(whole=self._shows_thoughts)

    def action_copy(self) -> None:
        """Copy the last answer, or the one to the chosen question."""
        if self._shown is None:
            return
        exchanges = self._shown.exchanges
        chosen = exchanges[self._marked] if self._marked is not None else None
        text = chosen.text if chosen else next((one.text for one in reversed(exchanges) if one.text), "")
        if text:
            self.app.copy_to_clipboard(text)
            self.notify(f"{plural(len(text.split()), 'word')} copied", markup=False)

    def action_scroll(self, step: int) -> None:
        """Scroll the conversation by a line."""
        talk = self._talks.get(self._shown) if self._shown is not None else None
        if talk is not None:
            talk.scroll_relative(y=step, animate=False)


OWN = frozenset(binding.action.partition("(")[0] for binding in ChatScreen.BINDINGS if isinstance(binding, Binding))
"""The chat's own actions: none of them does anything as long as there is no conversation."""
