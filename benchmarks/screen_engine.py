#!/usr/bin/env python3
"""A program in vllm's place for benchmarks/screen.py: a real page of metrics whose figures move at each reading.

`--bench-start SECONDS` is how long it starts, telling its progress ten times a second.
"""

import argparse
import json
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--served-model-name")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("--bench-start", type=float, default=0.0)
args, _ = parser.parse_known_args()

PAGE = (Path(__file__).parents[1] / "tests" / "data" / "metrics" / "vllm-0.26-h200.txt").read_text()
MOVING = re.compile(
    r"^(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc|(?:prompt|generation)_tokens_total"
    r"|(?:time_to_first_token|inter_token_latency|e2e_request_latency)_seconds_(?:bucket|count|sum))\{.*\}) (\S+)$",
    re.MULTILINE,
)
BEGUN = time.monotonic()


def moved(match: re.Match[str]) -> str:
    sample, value = match[1], float(match[2])
    if "num_requests" in sample:
        return f"{sample} {random.randrange(40)}.0"
    if "usage" in sample:
        return f"{sample} {random.random():.4f}"
    return f"{sample} {value + (time.monotonic() - BEGUN) * 1000}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        bodies: dict[str, Callable[[], str]] = {
            "/health": lambda: "",
            "/v1/models": lambda: json.dumps({"data": [{"id": args.served_model_name, "max_model_len": 4096}]}),
            "/version": lambda: json.dumps({"version": "0.26.0"}),
            "/metrics": lambda: MOVING.sub(moved, PAGE),
        }
        data = bodies[path]().encode() if path in bodies else b"{}"
        self.answer(data, 200 if path in bodies else 404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(b"{}", 200 if self.path == "/tokenize" else 404)

    def answer(self, data: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *values: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGKILL))
while (share := (time.monotonic() - BEGUN) / args.bench_start if args.bench_start else 1.0) < 1.0:
    print(
        f"\rLoading safetensors checkpoint shards: {share:4.0%} Completed | {share * 100:.0f}/100", end="", flush=True
    )
    threading.Event().wait(0.1)
print("Application startup complete.", flush=True)
ThreadingHTTPServer((args.host, args.port), Handler).serve_forever()
