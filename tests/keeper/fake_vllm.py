#!/usr/bin/env python3
"""A small program in vllm's place: its command line, log, routes and signals, without a model.

A profile's `python` names it, so it is called as `fake_vllm.py -m vllm.entrypoints.openai.api_server --port …`.
Its own flags: --fake-start SECONDS, --fake-hold PATH (it starts once that file exists), --fake-fail TEXT,
--fake-die-after SECONDS, --fake-ignore-term, --fake-child (one more process, in a session of its own, as
EngineCore is), --fake-core (one that is named as EngineCore is, and whose death it never notices),
--fake-running N (requests that never end),
--fake-kind KIND, --fake-chatter N (so many lines before it serves).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--model")
parser.add_argument("--served-model-name")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("--max-model-len", type=int, default=1024)
parser.add_argument("--fake-start", type=float, default=0.05)
parser.add_argument("--fake-hold", type=Path)
parser.add_argument("--fake-fail")
parser.add_argument("--fake-die-after", type=float)
parser.add_argument("--fake-ignore-term", action="store_true")
parser.add_argument("--fake-child", action="store_true")
parser.add_argument("--fake-core", action="store_true")
parser.add_argument("--fake-running", type=int, default=0)
parser.add_argument("--fake-kind", default="chat")
parser.add_argument("--fake-chatter", type=int, default=0)
args, _ = parser.parse_known_args()

tokens = 0


def say(text: str) -> None:
    print(f"(APIServer pid={os.getpid()}) INFO 11-21 09:45:18 [fake.py:1] {text}", flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: object, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self.answer("")
        elif path == "/v1/models":
            self.answer({"data": [{"id": args.served_model_name, "max_model_len": args.max_model_len}]})
        elif path == "/version":
            self.answer({"version": "0.0.fake"})
        elif path == "/metrics":
            label = f'{{model_name="{args.served_model_name}",engine="0"}}'
            self.answer(
                f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{label} {args.fake_running}\n"
                f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{label} 0\n"
                f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{label} 0.25\n"
                f"# TYPE vllm:generation_tokens counter\nvllm:generation_tokens_total{label} {tokens}\n"
            )
        else:
            self.answer({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.partition("?")[0]
        if path == "/v1/chat/completions" and args.fake_kind == "chat":
            asked = json.loads(body)["messages"][-1]["content"]
            self.answer({"choices": [{"message": {"role": "assistant", "content": f"You asked: {asked}"}}]})
            return
        wanted = {"/tokenize": "chat", "/v1/embeddings": "embedding"}.get(path)
        self.answer({"ok": True}, 200 if wanted == args.fake_kind else 404)

    def log_message(self, format: str, *values: object) -> None:
        say(f'{self.client_address[0]} - "{self.requestline}"')


def main() -> None:
    if args.fake_ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if args.fake_child:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    if args.fake_core:
        core = "import time; open('/proc/self/comm', 'w').write('VLLM::EngineCor'); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", core], start_new_session=True)
    say("non-default args: {'model': 'x'}")
    print(
        f"cwd {os.getcwd()} cuda {os.environ.get('CUDA_VISIBLE_DEVICES')!r} marker {os.environ.get('MARKER')}",
        flush=True,
    )
    sys.stdout.write("\rLoading safetensors checkpoint shards:  50% Completed | 1/2")
    sys.stdout.flush()
    time.sleep(args.fake_start)
    while args.fake_hold is not None and not args.fake_hold.exists():
        time.sleep(0.02)
    print("\rLoading safetensors checkpoint shards: 100% Completed | 2/2", flush=True)
    if args.fake_fail:
        print(f"(EngineCore pid=1) ValueError: {args.fake_fail}", flush=True)
        print("RuntimeError: Engine core initialization failed. See root cause above.", flush=True)
        sys.exit(1)
    for number in range(args.fake_chatter):
        say(f"chatter {number}")
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    say("Application startup complete.")
    if args.fake_die_after is not None:
        threading.Timer(args.fake_die_after, lambda: os._exit(0)).start()
    server.serve_forever()


main()
