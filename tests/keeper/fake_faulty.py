#!/usr/bin/env python3
"""A stand-in for vLLM that can be hurt: three processes, shared memory, a steady log, and metrics that go bad.

Called as `fake_faulty.py -m vllm.entrypoints.openai.api_server --port …`, like fake_vllm.py. Its own flags:

- `--fake-note PATH`: print `beat N` a hundred times a second, and note in this file which N was printed last;
- `--fake-tree`: an engine core in a session of its own and a worker below it, with a shared-memory file; as vLLM does,
  the core ends when the worker does, and the server with exit code 0 when the core does;
- `--fake-metrics PATH`: what the file holds becomes of /metrics: garbled, truncated, slow, huge, silent, or ok;
- `--fake-start SECONDS`, `--fake-die-after SECONDS`, `--fake-ignore-term`.
"""

import argparse
import mmap
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--model")
parser.add_argument("--served-model-name")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("--fake-note")
parser.add_argument("--fake-tree", action="store_true")
parser.add_argument("--fake-metrics")
parser.add_argument("--fake-start", type=float, default=0.0)
parser.add_argument("--fake-die-after", type=float)
parser.add_argument("--fake-ignore-term", action="store_true")
args, _ = parser.parse_known_args()

HUGE_BYTES = 50 << 20
SLOW_S = 60.0
LABELS = f'{{model_name="{args.served_model_name}",engine="0"}}'
PAGE = "".join(
    f"# TYPE vllm:{name} {kind}\nvllm:{name}{LABELS} 0.0\n"
    for name, kind in (
        ("num_requests_running", "gauge"),
        ("num_requests_waiting", "gauge"),
        ("kv_cache_usage_perc", "gauge"),
        ("generation_tokens_total", "counter"),
    )
).encode()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, status: int = 200, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self.metrics()
        elif path == "/v1/models":
            self.answer(f'{{"data": [{{"id": "{args.served_model_name}", "max_model_len": 1024}}]}}'.encode())
        elif path == "/version":
            self.answer(b'{"version": "0.0.faulty"}')
        else:
            self.answer(b"", 200 if path == "/health" else 404)

    def metrics(self) -> None:
        mode = "ok"
        if args.fake_metrics:
            with open(args.fake_metrics) as file:
                mode = file.read()
        try:
            if mode == "garbled":
                self.answer(os.urandom(20_000) + b"\nvllm:num_requests_running{ 7 \x00\n" + PAGE[:-30] + b" x y z\n")
            elif mode == "truncated":
                self.close_connection = True
                self.answer(PAGE[:-40], length=len(PAGE))
            elif mode == "slow":
                self.answer(PAGE[:1], length=len(PAGE))
                for at in range(1, len(PAGE)):
                    time.sleep(SLOW_S / len(PAGE))
                    self.wfile.write(PAGE[at : at + 1])
            elif mode == "huge":
                self.answer(PAGE * (HUGE_BYTES // len(PAGE)))
            elif mode == "silent":
                time.sleep(SLOW_S)
            else:
                self.answer(PAGE)
        except OSError:
            self.close_connection = True  # whoever asked has had enough

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.answer(b"{}", 200 if self.path.startswith("/tokenize") else 404)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing: the beats are the log."""


def beat(note: str) -> None:
    """Print lines, and after each note that it has been printed."""
    noted = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    number = 0
    while True:
        number += 1
        os.write(1, f"beat {number}\n".encode())
        os.pwrite(noted, f"{number}\n".encode(), 0)
        time.sleep(0.01)


def core() -> None:
    """Be the engine core, with a worker."""
    os.setsid()
    descriptor = os.open(f"/dev/shm/psm_faulty_{os.getpid()}", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(descriptor, 4096)
    kept = mmap.mmap(descriptor, 4096)
    if os.fork() == 0:
        while True:
            signal.pause()
    os.wait()
    kept.close()
    os._exit(1)


def main() -> None:
    if args.fake_ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if args.fake_tree:
        below = os.fork()
        if below == 0:
            core()
        threading.Thread(target=lambda: (os.waitpid(below, 0), os._exit(0)), daemon=True).start()
    print("non-default args: {'model': 'x'}", flush=True)
    time.sleep(args.fake_start)
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    server.daemon_threads = True
    print("Application startup complete.", flush=True)
    if args.fake_note:
        threading.Thread(target=beat, args=(args.fake_note,), daemon=True).start()
    if args.fake_die_after is not None:
        threading.Timer(args.fake_die_after, lambda: os._exit(3)).start()
    server.serve_forever()


if __name__ == "__main__":
    main()
