#!/usr/bin/env python3
"""The keeper's tests' stand-in engine, which streams its answers too, as screens ask for."""

import json
from pathlib import Path
from typing import Any

source = Path(__file__).parents[1].joinpath("keeper", "fake_vllm.py").read_text()
engine: dict[str, Any] = {"__name__": "fake_vllm"}
exec(source.removesuffix("main()\n"), engine)
Handler = engine["Handler"]


def post(self: Any) -> None:
    body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))))
    if not body.get("stream"):
        self.answer({"ok": True}, 200 if self.path.startswith("/tokenize") else 404)
        return
    said = f"You asked: {body['messages'][-1]['content']}"
    events = [{"choices": [{"index": 0, "delta": {"content": word + " "}}]} for word in said.split()]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    self.send_response(200)
    self.send_header("content-type", "text/event-stream")
    self.send_header("connection", "close")
    self.end_headers()
    for event in events:
        self.wfile.write(b"data: " + json.dumps({"id": "1", "object": "x", "model": "fake"} | event).encode() + b"\n\n")
    self.wfile.write(b"data: [DONE]\n\n")
    self.close_connection = True


Handler.do_POST = post
engine["main"]()
