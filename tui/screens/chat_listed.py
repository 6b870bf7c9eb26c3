"""The chat with its list of conversations: at the side where there is room, else on a sheet."""

from __future__ import annotations

from textual import on

from backends.chat_conversations import Conversation
from tui.format import plural
from tui.screens.chat_talk import TalkScreen
from tui.widgets.chat_list import ConversationList


class ListedScreen(TalkScreen):
    """A conversation is shown, renamed or deleted by what is done to it in the list."""

    def action_chats(self) -> None:
        """Go to the list of conversations: at the side, or on a sheet where there is no room for it."""
        listed = self.query_one(ConversationList)
        if listed.display:
            listed.focus()
            return
        from tui.screens.chat_sheets import ConversationsScreen

        def act(wanted: tuple[str, Conversation] | None) -> None:
            if wanted is not None:
                self._act_on(*wanted)

        if self._shown is not None:
            conversations = self.conversations.all(self._shown.server)
            self.app.push_screen(ConversationsScreen(conversations, self._shown), act)

    @on(ConversationList.Wanted)
    def _wanted(self, message: ConversationList.Wanted) -> None:
        self._act_on(message.what, message.conversation)

    def _act_on(self, what: str, conversation: Conversation) -> None:
        """Show, rename or delete a conversation."""
        if what == "show":
            self.conversations.show(conversation)
            self._changed()
        elif what == "rename":
            self._rename(conversation)
        elif conversation.exchanges:
            from tui.screens.confirm import ConfirmScreen

            saves = f"{self._key('chat.save')} saves a conversation."
            text = f"{plural(len(conversation.exchanges), 'question')} with all answers; {saves}"
            question = ConfirmScreen(f"Delete {conversation.name[:40]}?", text, "Delete")
            self.app.push_screen(question, lambda sure: self._delete(conversation) if sure else None)
        else:
            self._delete(conversation)

    def _rename(self, conversation: Conversation) -> None:
        from tui.screens.chat_sheets import LineScreen

        def take(title: str | None) -> None:
            if title is not None:
                conversation.title = title[:60]
                self._tell()

        self.app.push_screen(LineScreen("Another name", conversation.name), take)

    def _delete(self, conversation: Conversation) -> None:
        self.conversations.delete(conversation)
        talk = self._talks.pop(conversation, None)
        if talk is not None:
            talk.remove()
        self._changed()
