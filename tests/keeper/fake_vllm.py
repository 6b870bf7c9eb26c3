#!/usr/bin/env python3
"""A small program in vllm's place: its command line, log, routes and signals, without a model.

A profile's `python` names it, so it is called as `fake_vllm.py -m vllm.entrypoints.openai.api_server --port …`.
Its own flags: --fake-start SECONDS, --fake-hold PATH (it starts once that file exists), --fake-fail TEXT,
--fake-die-after SECONDS, --fake-ignore-term, --fake-child (one more process, in a session of its own, as
EngineCore is), --fake-core (one that is named as EngineCore is, and whose death it never notices),
--fake-running N (requests that never end),
--fake-kind KIND, --fake-chatter N (so many lines before it serves), --fake-token-s SECONDS (between the tokens of an
answer; `max_tokens` of them where they are asked for).

With --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 it sleeps and wakes as vLLM does: requests sent to it asleep hang,
those that run are aborted, and at level 2 it talks nonsense until its weights are read again.
--fake-gpu-bytes N: so much of each GPU is its own while it is awake, in the box of the NVML stub (GPUBOX_NVML_STUB);
--fake-asleep-bytes N (what is left asleep), --fake-memory-lag SECONDS (it comes back so much later than said). Without
room it neither starts nor wakes. --fake-first-sleep, --fake-sleep, --fake-wake, --fake-reload SECONDS: what each takes;
--fake-wake-fails: it never wakes, but for half; --fake-pin-bytes N: host memory that level 1 takes and keeps.
"""

import argparse
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

parser = argparse.ArgumentParser()
parser.add_argument("-m", dest="module")
parser.add_argument("--model")
parser.add_argument("--served-model-name")
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int)
parser.add_argument("--uds")
parser.add_argument("--max-model-len", type=int, default=1024)
parser.add_argument("--enable-sleep-mode", action="store_true")
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
parser.add_argument("--fake-token-s", type=float, default=0.0)
parser.add_argument("--fake-gpu-bytes", type=int, default=0)
parser.add_argument("--fake-asleep-bytes", type=int, default=1_800_000_000)
parser.add_argument("--fake-memory-lag", type=float, default=0.0)
parser.add_argument("--fake-first-sleep", type=float, default=0.0)
parser.add_argument("--fake-sleep", type=float, default=0.0)
parser.add_argument("--fake-wake", type=float, default=0.0)
parser.add_argument("--fake-reload", type=float, default=0.0)
parser.add_argument("--fake-wake-fails", action="store_true")
parser.add_argument("--fake-pin-bytes", type=int, default=0)
args, _ = parser.parse_known_args()

tokens = 0
OUT_OF_MEMORY = "CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62"
NONSENSE = "!!!!"
GENERATES = {"/v1/chat/completions": ("chat",), "/v1/completions": ("chat", "completion")}
DEV_MODE = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"


def say(text: str, level: str = "INFO") -> None:
    print(f"(APIServer pid={os.getpid()}) {level} 11-21 09:45:18 [fake.py:1] {text}", flush=True)


class RefusedError(Exception):
    """Answered as vLLM answers an exception in one of its routes."""


class Memory:
    """What a process of the engine holds of its GPUs, as the NVML stub's scenario tells it.

    Many engines write into one scenario: each under the lock beside it, and only the lines of its own process.
    """

    def __init__(self) -> None:
        scenario = os.environ.get("GPUBOX_NVML_STUB")
        self.scenario = Path(scenario) if scenario and args.fake_gpu_bytes else None
        self.gpus = [int(index) for index in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if index]
        self.pid = os.getpid()

    def hold(self, held: int) -> bool:
        """Hold so many bytes of each GPU from now on; False, and all as it was, where one has no room."""
        if self.scenario is None:
            return True
        with self.scenario.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before, *sections = self.scenario.read_text().split("[gpu]\n")
            for index in self.gpus:
                others = [line for line in sections[index].splitlines() if not self._is_over(line)]
                if held > self._free(others):
                    return False
                sections[index] = "\n".join([*others, *([f"living = {self.pid} {held}"] if held else []), ""])
            new = self.scenario.with_suffix(f".{os.getpid()}")
            new.write_text("[gpu]\n".join([before, *sections]))
            new.replace(self.scenario)
        return True

    def _is_over(self, line: str) -> bool:
        """Whether a line is ours, or of a process that has ended."""
        found = re.match(r"living = (\d+) ", line)
        if found is None or int(found[1]) == self.pid:
            return found is not None
        try:
            return Path(f"/proc/{found[1]}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    @staticmethod
    def _free(lines: list[str]) -> int:
        values = dict(line.split(" = ", 1) for line in lines if " = " in line and not line.startswith("living"))
        held = sum(int(line.split()[3]) for line in lines if line.startswith("living"))
        return int(values["memory_total"]) - int(values.get("memory_reserved", 0)) - int(values["memory_used"]) - held


class Engine:
    """Whether it sleeps, and what it does meanwhile; `parts` are what has its memory: weights, kv_cache."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.changed = threading.Condition()
        self.core: subprocess.Popen[bytes] | None = None
        self.parts = {"weights", "kv_cache"}
        self.level = 0
        self.has_weights = True
        self.slept = False
        self.aborts = 0
        self.running = self.prompt_tokens = self.finished = self.aborted = 0
        self.pinned = b""

    def awake(self) -> bool:
        return len(self.parts) == 2

    def check_core(self) -> None:
        if self.core is not None and self.core.poll() is not None:
            raise RefusedError("EngineCore encountered an issue. See stack trace (above) for the root cause.")

    def sleep(self, level: int) -> None:
        self.check_core()
        if not args.enable_sleep_mode:
            raise RefusedError("Sleep mode is not enabled.")
        with self.changed:
            if not self.parts:
                say("Executor is already sleeping.", "WARNING")
                return
            self.aborts += 1
            self.parts = set()
            self.changed.notify_all()
        time.sleep(args.fake_sleep if self.slept or level == 2 else args.fake_first_sleep)
        if level == 1:
            self.slept = True
            self.pinned = self.pinned or b"\1" * args.fake_pin_bytes
        self.level, self.has_weights = level, self.has_weights and level == 1
        left = min(args.fake_asleep_bytes, args.fake_gpu_bytes)
        if args.fake_memory_lag:
            threading.Timer(args.fake_memory_lag, self._give_back, (left,)).start()
        else:
            self.memory.hold(left)
        say(f"Sleep mode freed {(args.fake_gpu_bytes - left) / 2**30:.2f} GiB memory, 1.68 GiB memory is still in use.")

    def _give_back(self, left: int) -> None:
        if not self.parts:
            self.memory.hold(left)

    def wake(self, tags: list[str]) -> bool:
        self.check_core()
        wanted = set(tags) or {"weights", "kv_cache"}
        time.sleep(args.fake_wake)
        held = args.fake_gpu_bytes if len(self.parts | wanted) == 2 else args.fake_gpu_bytes // 4
        if args.fake_wake_fails or not self.memory.hold(held):
            self.memory.hold(args.fake_gpu_bytes // 4)
            say(f"Exception in ASGI application: RuntimeError: {OUT_OF_MEMORY}", "ERROR")
            raise RefusedError(OUT_OF_MEMORY)
        with self.changed:
            self.parts |= wanted
            if self.awake():
                self.level = 0
            self.changed.notify_all()
        return self.awake()

    def reload_weights(self) -> None:
        self.check_core()
        if "weights" not in self.parts:
            raise RefusedError("CUDA error: an illegal memory access was encountered")
        time.sleep(args.fake_reload)
        self.has_weights = True

    def words(self, said: str, count: int | None, ends: list[str]) -> Generator[str]:
        """Make an answer's tokens, and note why it ends; requests that come while it sleeps wait until it wakes."""
        global tokens
        with self.changed:
            self.changed.wait_for(self.awake)
            self.running += 1
            self.prompt_tokens += 1
            aborts = self.aborts
        try:
            text = said.split() if self.has_weights else [NONSENSE] * len(said.split())
            for number in range(len(text) if count is None else count):
                with self.changed:
                    if self.changed.wait_for(lambda: self.aborts != aborts, args.fake_token_s):
                        self.aborted += 1
                        ends.append("abort")
                        return
                tokens += 1
                yield f"{text[number % len(text)]} "
            self.finished += 1
            ends.append("stop")
        finally:
            with self.changed:
                self.running -= 1

    def figures(self) -> str:
        label = f'model_name="{args.served_model_name}",engine="0"'
        figures = (
            ("num_requests_running", "gauge", "", args.fake_running + self.running),
            ("num_requests_waiting", "gauge", "", 0),
            ("kv_cache_usage_perc", "gauge", "", 0.25),
            ("engine_sleep_state", "gauge", ',sleep_state="awake"', int(self.level == 0)),
            ("engine_sleep_state", "gauge", ',sleep_state="weights_offloaded"', int(self.level == 1)),
            ("engine_sleep_state", "gauge", ',sleep_state="discard_all"', int(self.level == 2)),
            ("generation_tokens", "counter", "", tokens),
            ("prompt_tokens", "counter", "", self.prompt_tokens),
            ("request_success", "counter", ',finished_reason="stop"', self.finished),
            ("request_success", "counter", ',finished_reason="abort"', self.aborted),
        )
        lines: dict[str, list[str]] = {}
        for name, kind, more, value in figures:
            lines.setdefault(f"# TYPE vllm:{name} {kind}", []).append(
                f"vllm:{name}{'_total' if kind == 'counter' else ''}{{{label}{more}}} {value}"
            )
        return "".join("\n".join([head, *values, ""]) for head, values in lines.items())


engine = Engine()


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
            self.answer(engine.figures())
        elif path == "/is_sleeping" and DEV_MODE:
            self.answer({"is_sleeping": not engine.awake()})
        else:
            self.answer({"detail": "Not Found"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path, _, query = self.path.partition("?")
        try:
            if args.fake_kind in {"/v1/chat/completions": ("chat",), "/v1/completions": ("chat", "completion")}.get(
                path, ()
            ):
                self.generate(json.loads(body), path)
            elif DEV_MODE and path in ("/sleep", "/wake_up", "/reset_prefix_cache", "/collective_rpc"):
                self.develop(path, parse_qs(query), body)
            else:
                wanted = {"/tokenize": "chat", "/v1/embeddings": "embedding"}.get(path)
                if wanted == args.fake_kind == "embedding":
                    list(engine.words("one", None, []))
                self.answer({"ok": True}, 200 if wanted == args.fake_kind else 404)
        except RefusedError as problem:
            self.answer({"error": {"message": str(problem), "type": "Internal Server Error", "code": 500}}, 500)

    def develop(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        if path == "/sleep":
            engine.sleep(level := int(query.get("level", ["1"])[0]))
            self.answer({"status": "sleeping", "level": level})
        elif path == "/wake_up":
            tags = query.get("tags", [])
            self.answer({"status": "awake" if engine.wake(tags) else "sleeping", "tags": tags or None})
        elif path == "/collective_rpc" and json.loads(body)["method"] == "reload_weights":
            engine.reload_weights()
            self.answer({"results": [None]})
        else:
            self.answer({"success": True})

    def generate(self, asked: dict[str, Any], path: str) -> None:
        """Answer with what was asked, or stream it; one that is aborted ends so."""
        engine.check_core()
        is_chat = path.startswith("/v1/chat")
        said = f"You asked: {asked['messages'][-1]['content']}" if is_chat else f"You asked: {asked.get('prompt')}"
        ends: list[str] = []
        words = engine.words(said, asked.get("max_tokens"), ends)
        if not asked.get("stream"):
            text = "".join(words).strip()
            choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            self.answer({"choices": [choice | {"finish_reason": ends[0]}]})
            return
        first = next(words, None)  # vLLM, too, says nothing before its first token
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            while first is not None:
                self.event({"delta": {"content": first}} if is_chat else {"text": first})
                first = next(words, None)
            self.event({"delta": {}, "finish_reason": ends[0]} if is_chat else {"text": "", "finish_reason": ends[0]})
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            words.close()
            with engine.changed:
                engine.aborted += 1

    def event(self, choice: dict[str, Any]) -> None:
        event = {"id": "1", "object": "x", "model": args.served_model_name, "choices": [{"index": 0} | choice]}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, format: str, *values: object) -> None:
        say(f'{self.client_address[0] if self.client_address else ""} - "{self.requestline}"')


class SocketServer(ThreadingHTTPServer):
    """Listens on a Unix socket; as vLLM's, it is bound long before anybody listens."""

    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0


def main() -> None:
    if args.fake_ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server: ThreadingHTTPServer | None = None
    if args.uds:
        server = SocketServer(args.uds, Handler, bind_and_activate=False)
        server.server_bind()
    if args.fake_child:
        subprocess.Popen(["sleep", "600"], start_new_session=True)
    if args.fake_core:
        core = "import time; open('/proc/self/comm', 'w').write('VLLM::EngineCor'); time.sleep(600)"
        engine.core = subprocess.Popen([sys.executable, "-c", core], start_new_session=True)
        engine.memory.pid = engine.core.pid
    say("non-default args: {'model': 'x'}")
    print(
        f"cwd {os.getcwd()} cuda {os.environ.get('CUDA_VISIBLE_DEVICES')!r} marker {os.environ.get('MARKER')}",
        flush=True,
    )
    sys.stdout.write("\rLoading safetensors checkpoint shards:  50% Completed | 1/2")
    sys.stdout.flush()
    if not engine.memory.hold(args.fake_gpu_bytes):
        args.fake_fail = (
            "Free memory on device cuda:0 (1.0/140.0 GiB) on startup is less than desired GPU memory "
            f"utilization (0.9, {args.fake_gpu_bytes / 2**30:.1f} GiB)."
        )
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
    if server is None:
        server = ThreadingHTTPServer((args.host, args.port), Handler)
    else:
        server.server_activate()
    say("Application startup complete.")
    if args.fake_die_after is not None:
        threading.Timer(args.fake_die_after, lambda: os._exit(0)).start()
    server.serve_forever()


main()
