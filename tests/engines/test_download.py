"""The download before a turn, by the engine's own huggingface_hub, from a small hub on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backends.engines.vllm import DOWNLOAD

pytestmark = pytest.mark.engine

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAFE = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same again",
    "README.md": b"#",
}
OLD = {"config.json": b"{}", "pytorch_model.bin": b"weights"}
REPOS = {"some/safe": SAFE, "some/old": OLD}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        words = self.path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        files = REPOS.get("/".join(words[2:4] if api else words[:2]))
        name = "/".join(words[4:])
        if files is None or (not api and name not in files):
            self.send(404, b"{}", with_body)
        elif api and words[4] == "tree":
            tree = [{"type": "file", "path": path, "size": len(text), "oid": oid(text)} for path, text in files.items()]
            self.send(200, json.dumps(tree).encode(), with_body)
        elif api:
            siblings = [{"rfilename": path} for path in files]
            self.send(200, json.dumps({"id": "x", "sha": COMMIT, "siblings": siblings}).encode(), with_body)
        else:
            self.send(200, files[name], with_body, etag=oid(files[name]))

    def send(self, status: int, body: bytes, with_body: bool, etag: str = "") -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-repo-commit", COMMIT)
        if etag:
            self.send_header("etag", f'"{etag}"')
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        return


def oid(text: bytes) -> str:
    return hashlib.sha1(text).hexdigest()


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def download(model: str, hub: str, cache: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, str(DOWNLOAD), model]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == code, done.stderr
    return done


def names(cache: Path, model: str) -> set[str]:
    snapshot = cache / f"models--{model.replace('/', '--')}" / "snapshots" / COMMIT
    return {path.name for path in snapshot.iterdir()}


def test_one_kind_of_weights_is_fetched_into_the_cache_that_the_engine_reads(hub: str, tmp_path: Path) -> None:
    said = download("some/safe", hub, tmp_path).stdout
    assert names(tmp_path, "some/safe") == {"config.json", "model.safetensors"}
    assert f"the model is at {tmp_path}" in said
    download("some/old", hub, tmp_path)
    assert names(tmp_path, "some/old") == {"config.json", "pytorch_model.bin"}


def test_without_the_hub_the_cache_must_do(hub: str, tmp_path: Path) -> None:
    download("some/safe", hub, tmp_path)
    download("some/safe", "http://127.0.0.1:9", tmp_path)
    assert "Error" in download("some/none", hub, tmp_path, code=1).stderr
