"""The lines a person needs once a server is ready: to ask it, to point a client at it, to reach it from elsewhere.

No key is ever in them: where the server has one, they name the variable to put it in.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
from typing import Any

from backends.snapshots import ModelKind, Server

KEY_VARIABLE = "OPENAI_API_KEY"

_ASK: dict[ModelKind, tuple[str, dict[str, object]]] = {
    ModelKind.CHAT: ("chat/completions", {"messages": [{"role": "user", "content": "What is a KV cache?"}]}),
    ModelKind.COMPLETION: ("completions", {"prompt": "Once upon a time", "max_tokens": 32}),
    ModelKind.EMBEDDING: ("embeddings", {"input": "a text to embed"}),
}


def curl_line(server: Server) -> str:
    """Return a command that asks the server one small question."""
    route, body = _ASK.get(server.kind, _ASK[ModelKind.CHAT])
    words = ["curl", f"{server.address}/v1/{route}", "-H", "Content-Type: application/json"]
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if server.has_api_key else ""
    data = json.dumps({"model": server.served_name, **body}, ensure_ascii=False)
    return f"{shlex.join(words)}{key} -d {shlex.quote(data)}"


def base_url_line(server: Server) -> str:
    """Return the line that points OpenAI's clients at the server; they want a key even where none is asked for."""
    key = "" if server.has_api_key else f" {KEY_VARIABLE}=none"
    return f"export OPENAI_BASE_URL={server.address}/v1{key}"


def ssh_line(server: Server) -> str:
    """Return the tunnel that brings the server to another machine; it runs there."""
    return f"ssh -N -L {server.port}:{_listening_host(server)}:{server.port} {getpass.getuser()}@{_this_host()}"


def launch_line(server: Server, content: dict[str, Any]) -> str:
    """Return the command that starts the server's engine as it was started, in one line.

    `content` is its profile, overrides merged; keys stand as `"$NAME"`. Raises InvalidProfileError where this version
    does not understand it any more.
    """
    from profiles.commands import export_command
    from profiles.schema import parse_profile

    profile = parse_profile(content, f"server {server.name}").model_copy(update={"port": server.port})
    return export_command(profile, server.gpu_indices or None).replace(" \\\n ", "")


def handover(server: Server) -> tuple[tuple[str, str], ...]:
    """Return all lines with a word on each."""
    return (
        ("ask it", curl_line(server)),
        ("clients", base_url_line(server)),
        ("from elsewhere", ssh_line(server)),
    )


def _listening_host(server: Server) -> str:
    return server.address.removeprefix("http://").rsplit(":", 1)[0]


def _this_host() -> str:
    """Return the address this machine was reached at, where SSH tells, else its name."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[2] if len(connection) == 4 else socket.gethostname()
