"""What stands around a conversation: whom one talks to and how, how full the context is, why one cannot ask."""

from __future__ import annotations

from rich.text import Text

from backends.chat_conversations import NEAR_ITS_END, Conversation
from backends.snapshots import ModelKind, Server, ServerState
from tui.format import count, fit, percent, plural
from tui.keymap import KeyNames
from tui.themes import STATES, Palette
from tui.widgets.status_bar import describe

ANSWERS = (ServerState.READY, ServerState.UNRESPONSIVE)
KINDS = {
    ModelKind.UNKNOWN: "",
    ModelKind.CHAT: "chat",
    ModelKind.COMPLETION: "completions only: your text is continued as it is",
    ModelKind.EMBEDDING: "embeddings only: it makes a vector of your text",
}


def can_ask(server: Server | None) -> bool:
    """Say whether the server can be asked now."""
    return server is not None and server.state in ANSWERS


def why_not(server: Server | None, colours: Palette, key: KeyNames) -> Text | None:
    """Return why the server cannot be asked now, and which key helps; None where it can."""
    if server is None:
        return Text("there is no server")
    if can_ask(server):
        return None
    sign, _ = STATES[server.state]
    text = Text.assemble((f"{sign} {describe(server)}", colours.state(server.state)))
    if server.state in (ServerState.FAILED, ServerState.LOST):
        return text.append(f": {server.cause or 'see its log'} · {key('mode.logs')} shows its log", colours.text)
    if server.state is ServerState.STOPPED:
        return text.append(f" · press {key('mode.servers')} to start it", colours.text)
    if server.state in (ServerState.STARTING, ServerState.QUEUED, ServerState.WAKING, ServerState.BACKOFF):
        return text.append(" · you can ask as soon as it is ready", colours.text)
    return text.append(" · it takes no questions now", colours.text)


def head(server: Server | None, conversation: Conversation | None, chats: int, width: int, colours: Palette) -> Text:
    """Say whom one talks to, in which of its `chats`, how much of the context is used, and what is not the default."""
    if server is None:
        return Text()
    text = Text.assemble((server.name, f"bold {colours.text}"), no_wrap=True)
    kind = KINDS[server.kind]
    if kind and server.kind is not ModelKind.CHAT:
        text.append(f"  {kind}", colours.accent)
    if conversation is None:
        return text
    if server.kind is not ModelKind.EMBEDDING:
        text.append("  ").append_text(context(server, conversation, colours))
    if chats > 1:
        text.append(f"  {fit(conversation.name, 24)} · {plural(chats, 'chat')}", colours.dim)
    settings = conversation.sampling.told()
    if conversation.system:
        settings = f"system prompt {settings}".rstrip()
    if settings and (room := width - text.cell_len - 2) > 8:
        text.append(f"  {fit(settings, room)}", colours.accent)
    room = width - text.cell_len - 2
    if room > len(server.model):
        text.append(f"  {server.model}", colours.dim)
    return text


def context(server: Server, conversation: Conversation, colours: Palette) -> Text:
    """Say how many tokens the conversation takes of the context: 'context 1,204 of 4,096 · 310 written'."""
    limit, used = server.max_model_len, conversation.context_tokens
    about = "~" if any(answer.is_estimate for answer in conversation.answers[-1:]) else ""
    if server.kind is ModelKind.COMPLETION or not used:
        return Text(f"context {count(limit)}" if limit else "", colours.dim)
    written = f" · {conversation.written_tokens:,} written"
    if not limit:
        return Text(f"context {about}{used:,}{written}", colours.dim)
    text = Text(f"context {about}{used:,} of {limit:,}", colours.dim)
    if used >= limit * NEAR_ITS_END:
        text = Text(f"! context {about}{used:,} of {limit:,}, {percent(used / limit)} full", f"bold {colours.warn}")
    return text.append(written, colours.dim)


def invitation(server: Server | None, colours: Palette, key: KeyNames) -> Text:
    """Say what one can do where nothing was said yet."""
    if server is None:
        return Text(f"There is no server to talk to.\n\nPress {key('mode.servers')}, choose a profile and start it.")
    what = {
        ModelKind.COMPLETION: "Write the beginning of a text: the model goes on with it.",
        ModelKind.EMBEDDING: "Write a text: you see its vector's dimensions and norm.",
    }.get(server.kind, "Ask it something, or type / for commands: a picture, a system prompt, settings.")
    return Text.assemble(
        (f"{server.model}\n", f"bold {colours.text}"),
        (f"{what}\n\n", colours.text),
        ("The conversation is kept while gpubox runs; answers go on while you look elsewhere.", colours.dim),
    )


def hint_text(rows: list[tuple[str, str]], width: int, colours: Palette) -> Text:
    """Show what can be typed now, one below the other."""
    column = min(30, max((len(usage) for usage, _ in rows), default=0)) + 2
    lines = []
    for usage, about in rows:
        colour = colours.bad if usage.startswith("✗") else colours.accent
        said = Text(f"{usage:<{column}}", colour)
        lines.append(said.append(fit(about, max(0, width - max(column, len(usage)))), colours.dim))
    return Text("\n", no_wrap=True).join(lines)
