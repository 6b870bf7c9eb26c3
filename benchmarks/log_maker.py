"""Makes a log such as a busy vLLM server writes through gpubox's shim, of any size."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

RARE = "Xyzzy: the rare word"
SHAPES = (
    '(APIServer pid=760) INFO:     10.0.0.{a}:{b} - "POST /v1/chat/completions HTTP/1.1" 200 OK',
    '(APIServer pid=760) INFO:     10.0.0.{a}:{b} - "GET /health HTTP/1.1" 200 OK',
    "(APIServer pid=760) INFO {when} [loggers.py:257] Engine 000: Running: {a} reqs, KV cache usage: {c}.1%",
    "(EngineCore pid=1215) INFO {when} [core.py:540] step {b}: scheduled {a} tokens",
    "(Worker_TP0 pid=1360) DEBUG {when} [gpu_model_runner.py:2300] batch of {a}",
    "(Worker_TP1 pid=1361) DEBUG {when} [gpu_model_runner.py:2300] batch of {a}",
    "(EngineCore pid=1215) WARNING {when} [scheduler.py:811] request chatcmpl-{b} was preempted",
)
WEIGHTS = (40, 10, 10, 20, 9, 9, 2)
TRACEBACK = (
    "(EngineCore pid=1215) ERROR {when} [core.py:1330] EngineCore encountered a fatal error.",
    "(EngineCore pid=1215) ERROR {when} [core.py:1330] Traceback (most recent call last):",
    '  File "/opt/venv/lib/python3.12/site-packages/vllm/v1/engine/core.py", line 1321, in run_engine_core',
    "(EngineCore pid=1215) ERROR {when} [core.py:1330] RuntimeError: CUDA error: an illegal memory access",
)


def make_log(path: Path, lines: int, seed: int = 0) -> None:
    """Write so many lines, about a hundred bytes each, a millisecond apart.

    A traceback stands at two thirds, `RARE` once, some thousand lines (or a thousandth) before the end.
    """
    dice = random.Random(seed)
    start = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
    rare, trouble = lines - max(1, lines // 1000), lines * 2 // 3
    with path.open("w") as file:
        for first in range(0, lines, 1000):
            second = start + timedelta(milliseconds=first)
            stamp, when = second.strftime("%Y-%m-%dT%H:%M:%S."), second.strftime("%m-%d %H:%M:%S")
            count = min(1000, lines - first)
            shapes = dice.choices(SHAPES, WEIGHTS, k=count)
            texts = [
                shape.format(a=number % 251, b=first + number, c=number % 97, when=when)
                for number, shape in enumerate(shapes)
            ]
            if first <= trouble < first + count:
                texts[trouble - first : trouble - first + 4] = [shape.format(when=when) for shape in TRACEBACK]
            if first <= rare < first + count:
                texts[rare - first] = f"(APIServer pid=760) INFO {when} [serving.py:1] {RARE}"
            file.write("".join(f"{stamp}{at:03}+00:00 {text}\n" for at, text in enumerate(texts[:count])))
