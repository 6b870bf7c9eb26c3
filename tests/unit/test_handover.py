"""The lines that are handed over once a server is ready work as they stand, and hold no key."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from backends.handover import base_url_line, curl_line, handover, ssh_line
from backends.snapshots import ModelKind, Server, ServerState

SERVER = Server(
    name="qwen",
    profile="qwen",
    engine="vllm",
    engine_version=None,
    model="m",
    served_name="it's a model",
    kind=ModelKind.CHAT,
    state=ServerState.READY,
    state_since=0.0,
    gpus=(),
    gpu_indices=(),
    host="0.0.0.0",
    port=8001,
    launched_at=0.0,
    ready_at=1.0,
    log_path=None,
)


def test_curl_is_one_command_with_valid_json() -> None:
    import json

    words = shlex.split(curl_line(SERVER))
    assert words[:2] == ["curl", "http://127.0.0.1:8001/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1])["model"] == "it's a model"


@pytest.mark.parametrize(
    ("kind", "route"), [(ModelKind.COMPLETION, "/v1/completions"), (ModelKind.EMBEDDING, "/v1/embeddings")]
)
def test_each_kind_of_model_is_asked_what_it_can_do(kind: ModelKind, route: str) -> None:
    assert route in curl_line(replace(SERVER, kind=kind))


def test_a_key_is_named_by_its_variable() -> None:
    keyed = replace(SERVER, has_api_key=True)
    assert '"Authorization: Bearer $OPENAI_API_KEY"' in curl_line(keyed)
    assert base_url_line(keyed) == "export OPENAI_BASE_URL=http://127.0.0.1:8001/v1"
    assert "OPENAI_API_KEY=none" in base_url_line(SERVER)


def test_the_tunnel_ends_where_the_server_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.1 22")
    assert ssh_line(SERVER).startswith("ssh -N -L 8001:127.0.0.1:8001 ")
    assert ssh_line(SERVER).endswith("@10.0.0.1")
    assert ssh_line(replace(SERVER, host="::1")).startswith("ssh -N -L 8001:[::1]:8001 ")
    assert [what for what, _ in handover(SERVER)] == ["ask it", "clients", "from elsewhere"]
