"""From a log to a cause: real logs of vLLM, and logs written after what other versions say."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.diagnosis.card import cause_line, diagnose, examine
from backends.processes.facts import StepExit
from backends.starts import Card

LOGS = Path(__file__).parent.parent / "data" / "logs"

CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "cpu-0.32-engine-core-killed": ("killed", None),
    "cpu-0.32-heads-not-divisible": ("heads-not-divisible", {"args.tensor_parallel_size": 2}),
    "cpu-0.32-max-model-len-too-long": ("context-too-long", {"args.max_model_len": 2048}),
    "cpu-0.32-model-not-found": ("model-not-found", None),
    "cpu-0.32-no-sleep-mode": ("no-sleep-mode", {"sleep": None}),
    "cpu-0.32-port-in-use": ("port-in-use", {"port": "auto"}),
    "cpu-0.32-quantization-mismatch": ("quantization-mismatch", {"args.quantization": None}),
    "cpu-0.32-unknown-architecture": ("unknown-architecture", None),
    "cpu-0.32-unknown-flag": ("unknown-flag", {"args.no_such_flag": None}),
    "cpu-0.32-unknown-model-type": ("unknown-architecture", None),
    "cpu-0.32-weights-damaged": ("weights-damaged", None),
    "cpu-0.32-weights-missing": ("weights-missing", None),
    "h200-0.26-kv-cache-too-small": ("kv-cache-too-small", {"args.max_model_len": 6496}),
    "cpu-0.32-ready": ("none", None),
    "h200-0.26-ready": ("none", None),
    "h200-0.26-tp2-ready": ("none", None),
    "written/attention-backend-0.14": ("attention-backend", {"args.attention_backend": None}),
    "written/bad-choice-0.11": ("bad-flag-value", {"args.dtype": "half"}),
    "written/bad-token-0.11": ("bad-token", {"secrets.hf_token": "env:HF_TOKEN"}),
    "written/batch-too-small-0.11": ("batch-too-small", {"args.max_num_batched_tokens": 32768}),
    "written/chat-template-0.11": ("no-chat-template", None),
    "written/crashed-segfault-0.11": ("crashed", {"args.enforce_eager": True}),
    "written/cuda-oom-at-load-0.11": ("cuda-oom-at-load", {"args.tensor_parallel_size": 2}),
    "written/cuda-oom-at-warm-up-0.9": ("cuda-oom-at-warm-up", {"args.gpu_memory_utilization": 0.9}),
    "written/cuda-oom-at-wake-0.26": ("cuda-oom-at-wake", {"args.gpu_memory_utilization": 0.8}),
    "written/cuda-oom-in-nccl-0.9": ("cuda-oom-at-load", {"args.tensor_parallel_size": 4}),
    "written/cuda-oom-in-use-0.11-tp2": ("cuda-oom-in-use", {"args.gpu_memory_utilization": 0.9}),
    "written/dtype-0.11": ("dtype-unsupported", {"args.dtype": "half"}),
    "written/gpu-memory-busy-0.12": ("gpu-memory-busy", {"args.gpu_memory_utilization": 0.29}),
    "written/host-memory-0.11": ("host-memory", {"args.cpu_offload_gb": None}),
    "written/hub-unreachable-0.11": ("hub-unreachable", None),
    "written/illegal-access-0.11": ("cuda-error", {"args.enforce_eager": True}),
    "written/jit-build-failed-flashinfer-0.11": ("jit-build-failed", {"env.VLLM_USE_FLASHINFER_SAMPLER": "0"}),
    "written/jit-build-failed-triton-0.12": ("jit-build-failed", {"args.enforce_eager": True}),
    "written/killed-by-kernel": ("killed-for-memory", None),
    "written/killed-worker-0.11": ("killed", {"args.max_parallel_loading_workers": 1}),
    "written/lora-rank-0.11": ("lora-rank", {"args.max_lora_rank": 64}),
    "written/model-gated-0.10": ("model-gated", {"secrets.hf_token": "env:HF_TOKEN"}),
    "written/module-missing": ("module-missing", None),
    "written/nccl-0.5": ("nccl", {"env.NCCL_DEBUG": "INFO"}),
    "written/nccl-0.9-tp2": ("nccl", {"env.NCCL_DEBUG": "INFO"}),
    "written/no-driver-0.11": ("no-driver", None),
    "written/no-driver-device-type-0.12": ("no-driver", None),
    "written/no-kv-cache-0.8": ("no-kv-cache", {"args.gpu_memory_utilization": 0.95}),
    "written/no-space-0.11": ("no-space", None),
    "written/not-found-hub-0.11": ("model-not-found", {"secrets.hf_token": "env:HF_TOKEN"}),
    "written/port-in-use-uvicorn-0.6": ("port-in-use", {"port": "auto"}),
    "written/quantization-unknown-0.28": ("quantization-mismatch", {"args.quantization": None}),
    "written/quantized-not-divisible-0.7": (
        "quantized-not-divisible",
        {"args.tensor_parallel_size": 2, "args.pipeline_parallel_size": 2},
    ),
    "written/too-few-gpus-0.11": ("too-few-gpus", {"args.tensor_parallel_size": 4}),
    "written/trust-remote-code-0.11": ("trust-remote-code", {"args.trust_remote_code": True}),
    "written/unknown-flag-0.10": ("unknown-flag", {"args.max_model_length": None, "args.max_model_len": 4096}),
    "written/unknown-in-worker-0.11": ("unknown", None),
}
"""Each log, the code that is to be told of it, and the first change of the profile that is offered; None: none is."""

STAMP = "2026-11-21T09:45:18.123+00:00 "
STYLES: dict[str, Callable[[str], str]] = {
    "gpubox": lambda line: STAMP + line,
    "docker -t": lambda line: "2026-11-21T09:45:18.123456789Z " + line,
    "kubernetes": lambda line: "2026-11-21T09:45:18.123456789Z stderr F " + line,
    "kubectl": lambda line: "[pod/vllm-0/vllm] " + line,
    "compose": lambda line: "vllm-1  | " + line,
    "journald": lambda line: "Nov 21 09:45:18 box vllm[4242]: " + line,
    "colours": lambda line: re.sub(r"^(\([^)]*\))", "\x1b[1;36m\\1\x1b[0;0m", line),
    "windows ends": lambda line: line + "\r",
    "local time": lambda line: "2026-11-21 09:45:18.123 " + line,
    "a launcher's": lambda line: re.sub(r"^\(", "2026-11-21 09:45:18.604 [Info] (Process) (", line),
    "fastchat": lambda line: "2024-10-14 01:39:49 | ERROR | stderr | " + line,
    "nested": lambda line: re.sub(r"^\((Worker|EngineCore)", r"(APIServer pid=7) (\1", line),
    "of torchrun": lambda line: "[rank0]: " + line,
    "python's logging": lambda line: re.sub(
        r"^\([^)]*\) (ERROR|INFO|WARNING) 11-21 ([\d:]+) \[([\w.]+):\d+\] ",
        r"2026-11-21 \2,123 - vllm.\3 - \1 - ",
        line,
    ),
    "json": lambda line: json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-11-21T09:45:18.1Z"}),
    "data parallel": lambda line: line.replace("(EngineCore pid", "(EngineCore_DP0 pid"),
    "older core": lambda line: re.sub(r"\(EngineCore(?:_DP0)? pid", "(EngineCore_0 pid", line),
    "older worker": lambda line: re.sub(r"\(Worker(?:_TP(\d))? pid", r"(VllmWorker rank=\g<1>0 pid", line),
    "with a year": lambda line: re.sub(r"(ERROR|INFO|WARNING) (11-21 )", r"\1 2026-\2", line),
    "old source": lambda line: re.sub(r"\[([\w.]+:\d+)\]", r"\1]", line),
    "no process": lambda line: re.sub(r"^\((?:EngineCore|Worker|APIServer|VllmWorker)[^)]*\) ", "", line),
}


def card_of(name: str, **known: Any) -> Card:
    return diagnose(LOGS / f"{name}.log", **known)


def first_change(card: Card) -> dict[str, Any] | None:
    return next((remedy.set for remedy in card.remedies if remedy.set), None)


def test_every_log_of_the_corpus_is_a_case() -> None:
    assert {str(path.relative_to(LOGS))[:-4] for path in LOGS.rglob("*.log")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_log_tells_its_cause_and_the_first_change(name: str) -> None:
    card = card_of(name)
    assert (card.cause, first_change(card)) == CASES[name]
    assert "?" not in card.summary
    assert "\n" not in card.summary


def test_one_that_did_not_wake_is_told_how_to_get_room() -> None:
    sleeper = {
        "name": "chat",
        "model": "/models/m",
        "sleep": True,
        "ttl": 5.0,
        "args": {"gpu_memory_utilization": 0.85},
    }
    first, *_ = card_of("written/cuda-oom-at-wake-0.26", profile=sleeper).remedies
    assert "gpubox switch chat" in first.text
    assert first_change(card_of("cpu-0.32-no-sleep-mode", profile=sleeper)) == {"sleep": None, "ttl": None}
    in_use = card_of("written/cuda-oom-in-use-0.11-tp2", profile=sleeper).remedies
    assert in_use
    assert not any("env.PYTORCH_CUDA_ALLOC_CONF" in remedy.set for remedy in in_use), "it could not sleep any more"


@pytest.mark.parametrize("style", STYLES)
def test_other_prefixes_do_not_change_the_cause(style: str, tmp_path: Path) -> None:
    wrong = {}
    for name, (cause, _) in CASES.items():
        lines = (LOGS / f"{name}.log").read_text().splitlines()
        log = tmp_path / "other.log"
        log.write_text("\n".join(STYLES[style](line) for line in lines) + "\n")
        if (found := diagnose(log).cause) != cause:
            wrong[name] = found
    assert wrong == {}


@pytest.mark.parametrize("name", [name for name, (cause, _) in CASES.items() if cause != "none"])
def test_the_evidence_is_a_line_of_the_file(name: str) -> None:
    evidence = card_of(name).evidence
    assert evidence is not None
    line = (LOGS / f"{name}.log").read_bytes().decode().split("\n")[evidence.line - 1]
    shown = re.sub(r"\*\*\*.*", "", evidence.text)
    assert shown[:40].split(": ")[-1] in line


def test_the_frames_are_those_of_the_exception_that_began_it() -> None:
    frames = card_of("h200-0.26-kv-cache-too-small").frames
    assert frames[-1] == "vllm/v1/core/kv_cache_utils.py:778 in _check_enough_kv_cache_memory"
    assert not any("core_client" in frame for frame in frames)


def test_the_root_is_the_first_of_the_workers_not_who_suffers_from_it() -> None:
    card = card_of("written/unknown-in-worker-0.11")
    assert card.summary == "AssertionError: a weight with no home: model.layers.0.frob"
    assert card.frames[-1] == "vllm/model_executor/models/foo.py:88 in load_weights"


def test_keys_are_masked() -> None:
    card = card_of("written/bad-token-0.11")
    assert "hf_abc" not in repr(card)


def test_a_key_on_the_command_line_stays_untold(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("usage: vllm serve\nvllm serve: error: unrecognized arguments: --api-keyy sk-abcdefgh12345678\n")
    card = diagnose(log)
    assert card.cause == "unknown-flag"
    assert "abcdefgh" not in repr(card)


def test_remedies_know_the_profile() -> None:
    profile = {"model": "/models/m", "gpus": 3, "args": {"tensor-parallel-size": 3}}
    card = card_of("cpu-0.32-heads-not-divisible", profile=profile)
    assert first_change(card) == {"args.tensor_parallel_size": 2, "gpus": 2}
    typo = {"model": "m", "args": {"max_model_length": 8192}}
    card = card_of("written/unknown-flag-0.10", profile=typo)
    assert first_change(card) == {"args.max_model_length": None, "args.max_model_len": 8192}
    offload = {"model": "m", "args": {"cpu_offload_gb": 8}}
    card = card_of("written/cuda-oom-at-load-0.11", profile=offload, gpu_count=1)
    assert first_change(card) == {"args.cpu_offload_gb": 12}


def test_more_memory_is_offered_only_where_it_is_enough() -> None:
    small, large = 16 << 30, 140 << 30
    offered = [r.set for r in card_of("h200-0.26-kv-cache-too-small", gpu_memory_bytes=large).remedies]
    assert {"args.gpu_memory_utilization": 0.12} in offered
    profile = {"model": "m", "args": {"gpu_memory_utilization": 0.92, "max_model_len": 32768}}
    card = card_of("h200-0.26-kv-cache-too-small", gpu_memory_bytes=small, profile=profile)
    assert not [r for r in card.remedies if "args.gpu_memory_utilization" in r.set]


def test_a_typo_in_a_path_finds_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "qwen2.5-7b").mkdir()
    (tmp_path / "qwen2.5-7b" / "config.json").write_text("{}")
    text = (LOGS / "cpu-0.32-model-not-found.log").read_text().replace("/models/nonexistent", f"{tmp_path}/qwen2.5-7")
    log = tmp_path / "x.log"
    log.write_text(text)
    assert first_change(diagnose(log)) == {"model": f"{tmp_path}/qwen2.5-7b"}


def test_who_holds_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        card = card_of("cpu-0.32-port-in-use", port=port)
    assert re.fullmatch(rf"its port {port} is in use, by pid \d+ \(.+, of \w+\)", card.summary)


@pytest.mark.parametrize(
    ("ended", "oom_killed", "cause", "says"),
    [
        (StepExit(0.0, 0, None, "boot"), None, "unknown", "it ended with exit code 0, though nobody asked it to"),
        (StepExit(0.0, None, 9, "boot"), None, "killed", "killed by SIGKILL, perhaps by the kernel for want of memory"),
        (
            StepExit(0.0, 137, None, "boot"),
            None,
            "killed",
            "killed by SIGKILL, perhaps by the kernel for want of memory",
        ),
        (StepExit(0.0, None, 9, "boot"), False, "killed", "killed by SIGKILL"),
        (StepExit(0.0, None, 15, "boot"), None, "killed", "killed by SIGTERM"),
        (StepExit(0.0, None, 11, "boot"), None, "crashed", "killed by SIGSEGV"),
        (StepExit(0.0, 3, None, "boot"), None, "unknown", "exit code 3"),
        (None, None, "none", "it ended, nobody saw how"),
    ],
)
def test_how_it_ended_is_told_where_the_log_says_nothing(
    tmp_path: Path, ended: StepExit | None, oom_killed: bool | None, cause: str, says: str
) -> None:
    log = tmp_path / "x.log"
    log.write_text(f"{STAMP}nothing of note\n")
    card = diagnose(log, ended, oom_killed=oom_killed)
    assert (card.cause, cause_line(card, ended, oom_killed=oom_killed)) == (cause, says)


def test_a_kill_that_the_kernel_counted_is_certain(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("(APIServer pid=1) INFO:     Application startup complete.\n")
    card = diagnose(log, StepExit(0.0, None, 9, "boot"), oom_killed=True)
    assert card.cause == "killed-for-memory"
    assert "perhaps" not in card.summary


def test_an_unknown_failure_shows_its_first_error_line(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "(APIServer pid=1) INFO 11-21 09:45:18 [a.py:1] hello\n"
        "(APIServer pid=1) ERROR 11-21 09:45:19 [a.py:2] the moon is in the wrong house\n"
        "(APIServer pid=1) ERROR 11-21 09:45:19 [a.py:2] giving up\n"
    )
    card = diagnose(log, StepExit(0.0, 1, None, "boot"))
    assert card.cause == "unknown"
    assert card.summary == "the moon is in the wrong house"
    assert card.evidence is not None
    assert card.evidence.line == 2


def test_only_the_last_launch_in_a_log_counts(tmp_path: Path) -> None:
    first = (LOGS / "h200-0.26-kv-cache-too-small.log").read_text()
    second = (LOGS / "cpu-0.32-weights-missing.log").read_text()
    log = tmp_path / "x.log"
    log.write_text(first + second)
    assert diagnose(log).cause == "weights-missing"
    log.write_text(first + (LOGS / "h200-0.26-ready.log").read_text())
    assert diagnose(log).cause == "none"


def test_failed_requests_are_not_why_a_server_ends(tmp_path: Path) -> None:
    request = (
        "(APIServer pid=1) INFO:     Application startup complete.\n"
        "(APIServer pid=1) ERROR:    Exception in ASGI application\n"
        "(APIServer pid=1) Traceback (most recent call last):\n"
        '(APIServer pid=1)   File "/opt/venv/starlette/routing.py", line 1, in app\n'
        "(APIServer pid=1) ValueError: this model's maximum context length is 2048 tokens\n"
    )
    log = tmp_path / "x.log"
    log.write_text(request + (LOGS / "written/illegal-access-0.11.log").read_text().split("complete.\n")[1])
    assert diagnose(log).cause == "cuda-error"


def test_the_parts_of_a_rotated_log_are_one_log(tmp_path: Path) -> None:
    lines = (LOGS / "h200-0.26-kv-cache-too-small.log").read_text().splitlines(keepends=True)
    for cut in (1, 40, 64, 100):
        (tmp_path / "x.log.1").write_text("".join(lines[:cut]))
        (tmp_path / "x.log").write_text("".join(lines[cut:]))
        found = examine(tmp_path / "x.log")
        assert found.card.cause == "kv-cache-too-small", cut
        assert found.card.evidence is not None
        assert (
            "estimated maximum model length is 6496"
            in found.file.read_bytes().decode().split("\n")[found.card.evidence.line - 1]
        )


def test_of_a_huge_log_only_what_matters_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.diagnosis.reading.HEAD_BYTES", 1 << 20)
    monkeypatch.setattr("backends.diagnosis.reading.TAIL_BYTES", 1 << 20)
    steady = "(APIServer pid=100) INFO 11-21 11:02:05 [loggers.py:127] Engine 000: Running: 41 reqs\n"
    head, failure = (LOGS / "written/illegal-access-0.11.log").read_text().split("complete.\n")
    many = steady * ((6 << 20) // len(steady))
    log = tmp_path / "x.log"
    log.write_text(head + "complete.\n" + many + failure + many)
    card = diagnose(log)
    assert card.cause == "cuda-error"
    assert card.evidence is not None
    with log.open() as file:
        line = next(text for number, text in enumerate(file, 1) if number == card.evidence.line)
    assert "illegal memory access" in line


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * (5 << 20) + b"\n/usr/bin/python: No module named vllm\n")
    card = diagnose(log)
    assert card.cause == "module-missing"
    assert card.evidence is not None
    assert card.evidence.line == 2


def test_where_only_the_report_of_a_failure_is_left_it_is_said_so(tmp_path: Path) -> None:
    lines = (LOGS / "h200-0.26-kv-cache-too-small.log").read_bytes().decode().split("\n")
    log = tmp_path / "x.log"
    log.write_text("\n".join(line for line in lines if "APIServer" in line))
    card = diagnose(log)
    assert card.cause == "unknown"
    assert card.summary == "an engine process failed; what began it is not in this log"


def test_a_log_cut_within_a_traceback_still_tells(tmp_path: Path) -> None:
    lines = (LOGS / "h200-0.26-kv-cache-too-small.log").read_bytes().decode().split("\n")
    log = tmp_path / "x.log"
    log.write_text("\n".join(lines[50:]))
    card = diagnose(log)
    assert card.cause == "kv-cache-too-small"
    assert card.frames[-1].endswith("in _check_enough_kv_cache_memory")


def test_a_stop_by_keyboard_is_no_failure(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "(APIServer pid=1) INFO:     Application startup complete.\n"
        "(APIServer pid=1) Traceback (most recent call last):\n"
        '(APIServer pid=1)   File "/opt/venv/uvicorn/server.py", line 1, in <module>\n'
        "(APIServer pid=1) KeyboardInterrupt\n"
    )
    assert diagnose(log).cause == "none"


def test_a_hostile_line_takes_no_long_time(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    word = "a." * 30_000
    log.write_text(
        f'({word}\n{word}\nTraceback (most recent call last):\n  File "{word}", line 1, in {word}\n'
        f'FileNotFoundError: {word} {word}\nValueError: {"(" * 50_000}\n{{"log": {word}\n'
    )
    assert diagnose(log).cause == "unknown"
