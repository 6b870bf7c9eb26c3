"""What people start by hand becomes a profile: nothing is dropped in silence, no key is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from profiles.commands import Imported, import_command
from profiles.errors import InvalidProfileError
from profiles.schema import parse_profile

HOME = {"HOME": "/home/u"}


def imported(text: str, **environ: str) -> Imported:
    return import_command(text, environ=HOME | environ)


def args_of(flags: str, engine: str = "vllm") -> dict[str, Any]:
    args: dict[str, Any] = imported(f"{engine} serve org/m {flags}").profile.get("args", {})
    return args


def notes_of(text: str) -> str:
    return "\n".join(imported(text).notes)


def test_the_issues_own_example() -> None:
    found = imported("CUDA_VISIBLE_DEVICES=6 vllm serve /models/x --port 8000 --max-model-len 2048")
    assert found.profile == {
        "name": "x",
        "engine": "vllm",
        "model": "/models/x",
        "served_name": "/models/x",
        "port": 8000,
        "args": {"max_model_len": 2048},
    }
    assert found.gpus == "6"
    assert "--gpus 6" in "\n".join(found.notes)
    assert "127.0.0.1" in "\n".join(found.notes)


def test_a_script_with_exports_continuations_and_redirections() -> None:
    found = imported("""\
#!/bin/bash
export HF_HOME=~/hub NCCL_DEBUG=INFO
MODEL="Qwen/Qwen2.5-14B-Instruct"   # the model
EXTRA="--max-model-len 4096 --enforce-eager"
cd /srv && source venv/bin/activate
CUDA_VISIBLE_DEVICES=0,1 nohup python3 -u -m vllm.entrypoints.openai.api_server \\
    --model "$MODEL" -tp 2 --gpu-memory-utilization=0.90 $EXTRA \\
    --served-model-name qwen gpt-4 --host 0.0.0.0 --port ${PORT:-8123} > vllm.log 2>&1 &
""")
    assert found.profile == {
        "name": "qwen",
        "engine": "vllm",
        "model": "Qwen/Qwen2.5-14B-Instruct",
        "served_name": "qwen",
        "host": "0.0.0.0",
        "port": 8123,
        "args": {
            "tensor_parallel_size": 2,
            "gpu_memory_utilization": 0.9,
            "max_model_len": 4096,
            "enforce_eager": True,
        },
        "env": {"HF_HOME": "/home/u/hub", "NCCL_DEBUG": "INFO"},
    }
    notes = "\n".join(found.notes)
    for told in ("cd …", "source …", "nohup", "> vllm.log 2>&1 &", "not as gpt-4", "--gpus 0,1"):
        assert told in notes


def test_docker_gives_its_paths_ports_and_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    found = imported("""\
docker run --runtime nvidia --gpus '"device=2,3"' --name My-Qwen -d --ipc=host \\
    -v ~/.cache/huggingface:/root/.cache/huggingface -v /data/models:/models:ro \\
    --env "HUGGING_FACE_HUB_TOKEN=$HF_TOKEN" -e NCCL_DEBUG=INFO -e LANG -p 10.0.0.1:8001:8000 \\
    --restart on-failure:4 \\
    vllm/vllm-openai:v0.8.5 --model /models/q --tensor-parallel-size 2 --chat-template /models/t.jinja
""")
    assert found.profile == {
        "name": "my-qwen",
        "engine": "vllm",
        "model": "/data/models/q",
        "served_name": "/models/q",
        "host": "10.0.0.1",
        "port": 8001,
        "args": {"tensor_parallel_size": 2, "chat_template": "/data/models/t.jinja"},
        "env": {"NCCL_DEBUG": "INFO"},
        "secrets": {"hf_token": "env:HF_TOKEN"},
        "restart": {"policy": "on-failure", "max_attempts": 4},
    }
    assert found.gpus == "2,3"
    notes = "\n".join(found.notes)
    for told in ("--runtime nvidia --ipc host", "v0.8.5", "LANG", "/models", "on-failure"):
        assert told in notes


@pytest.mark.parametrize(
    "text",
    [
        "docker run -p 9000:8000 vllm/vllm-openai:latest org/m --max-model-len 9",
        "sudo docker run -it --rm -p9000:8000 vllm/vllm-openai --model=org/m --max-model-len=9",
        "podman run --publish=9000:7000 --entrypoint vllm my/image serve org/m --port 7000 --max-model-len 9",
        "docker container run --network host img python3 -m vllm.entrypoints.openai.api_server "
        "--port 9000 --model org/m --max-model-len 9",
    ],
)
def test_every_form_of_docker_run(text: str) -> None:
    profile = imported(text).profile
    assert (profile["model"], profile["port"], profile["args"]) == ("org/m", 9000, {"max_model_len": 9})
    assert "host" not in profile


def test_a_container_without_a_published_port_takes_a_free_one() -> None:
    assert "port" not in imported("docker run --gpus all vllm/vllm-openai --model org/m --port 9000").profile


def test_a_hub_cache_of_ones_own_is_kept() -> None:
    found = imported("docker run -v /big/hf:/root/.cache/huggingface vllm/vllm-openai --model org/m")
    assert found.profile["env"] == {"HF_HOME": "/big/hf"}


@pytest.mark.parametrize(
    ("flags", "args"),
    [
        ("--max-model-len=2048", {"max_model_len": 2048}),
        ("--max_model_len 2048", {"max_model_len": 2048}),
        ("--max-model-len auto", {"max_model_len": "auto"}),
        ("--max-model-len -1", {"max_model_len": -1}),
        ("--seed 007", {"seed": "007"}),
        ("--revision 1.10", {"revision": "1.10"}),
        ("--gpu-memory-utilization 0.90", {"gpu_memory_utilization": 0.9}),
        ("--enforce-eager --no-enable-prefix-caching", {"enforce_eager": True, "enable_prefix_caching": False}),
        ("--disable-log-requests --dtype half", {"disable_log_requests": True, "dtype": "half"}),
        ("-tp 2 -pp=2 -q awq", {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "quantization": "awq"}),
        ("-O3", {"optimization_level": 3}),
        ("-O 2", {"optimization_level": 2}),
        ("-O.mode=3 -cc.backend x", {"compilation_config": {"mode": 3, "backend": "x"}}),
        ("""-O '{"mode": 3}'""", {"compilation_config": {"mode": 3}}),
        ("--lora-modules a=/x b=/y --enable-lora", {"lora_modules": ["a=/x", "b=/y"], "enable_lora": True}),
        ("--lora-modules a=/x", {"lora_modules": ["a=/x"]}),
        ("--middleware a.b --middleware c.d", {"middleware": ["a.b", "c.d"]}),
        ("""--allowed-origins '["*"]'""", {"allowed_origins": ["*"]}),
        ("""--hf-overrides '{"a": {"b": 1.5}}'""", {"hf_overrides": {"a": {"b": 1.5}}}),
        ("""--hf-overrides '{"a": null}'""", {"hf_overrides": '{"a": null}'}),
        ("--hf-overrides.a.b_c 1 --hf_overrides.a.d=x", {"hf_overrides": {"a": {"b_c": 1, "d": "x"}}}),
        ("--hf-overrides.a+ 1 --hf-overrides.a+=2,x", {"hf_overrides": {"a": [1, 2, "x"]}}),
        ("--brand-new --other-new 3 --many-new x y", {"brand_new": True, "other_new": 3, "many_new": ["x", "y"]}),
        ("--no-brand-new", {"brand_new": False}),
        ("--max-model-len 1 --max-model-len 2", {"max_model_len": 2}),
    ],
)
def test_flags_become_arguments(flags: str, args: dict[str, Any]) -> None:
    assert args_of(flags) == args


def test_a_switch_before_the_model_does_not_swallow_it() -> None:
    profile = imported("vllm serve --trust-remote-code -ep org/m").profile
    assert profile["model"] == "org/m"
    assert profile["args"] == {"trust_remote_code": True, "enable_expert_parallel": True}


def test_transformers_has_flags_of_its_own() -> None:
    found = imported("transformers serve org/m --continuous-batching --quantization bnb-4bit --port 9000 --no-compile")
    assert found.profile == {
        "name": "m",
        "engine": "transformers",
        "model": "org/m",
        "port": 9000,
        "args": {"continuous_batching": True, "quantization": "bnb-4bit", "compile": False},
    }


def test_an_interpreter_that_is_named_by_its_path_is_kept(tmp_path: Path) -> None:
    assert imported("/opt/v/bin/vllm serve org/m").profile["python"] == "/opt/v/bin/python"
    assert imported("/opt/v/bin/transformers serve org/m").profile["python"] == "/opt/v/bin/python"
    module = "-m vllm.entrypoints.openai.api_server --model org/m"
    assert imported(f"/opt/v/bin/python3.12 {module}").profile["python"] == "/opt/v/bin/python3.12"
    assert "python" not in imported(f"python3 {module}").profile


def test_a_relative_path_is_of_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/x").mkdir(parents=True)
    assert imported("vllm serve ./y").profile["model"] == f"{tmp_path}/y"
    assert imported("vllm serve models/x").profile["model"] == f"{tmp_path}/models/x"
    assert imported("vllm serve models/y").profile["model"] == "models/y"


def test_where_models_come_from() -> None:
    assert imported("HF_ENDPOINT=https://hub.example vllm serve org/m").profile["hub_endpoint"] == "https://hub.example"
    assert imported("VLLM_USE_MODELSCOPE=True vllm serve org/m").profile["source"] == "modelscope"
    local = imported("VLLM_USE_MODELSCOPE=True HF_ENDPOINT=https://hub.example vllm serve /m").profile
    assert "source" not in local
    assert local["env"] == {"HF_ENDPOINT": "https://hub.example"}


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("vllm serve m --api-key $MY_KEY", {"api_key": "env:MY_KEY"}),
        ("vllm serve m --api-key k3y", {"api_key": "env:VLLM_API_KEY"}),
        ("vllm serve m --api-key=k3y", {"api_key": "env:VLLM_API_KEY"}),
        ("vllm serve m --api-key k3y other", {"api_key": "env:VLLM_API_KEY"}),
        ("VLLM_API_KEY=k3y vllm serve m", {"api_key": "env:VLLM_API_KEY"}),
        ('HF_TOKEN="$(cat ~/.tok)" vllm serve m', {"hf_token": "file:~/.tok"}),
        ("export HF_TOKEN=k3y; vllm serve m", {"hf_token": "env:HF_TOKEN"}),
        ("export HF_TOKEN; vllm serve m --hf-token $HF_TOKEN", {"hf_token": "env:HF_TOKEN"}),
        ("vllm serve m --hf-token", {"hf_token": "env:HF_TOKEN"}),
        ("env WANDB_API_KEY=k3y vllm serve m", {"WANDB_API_KEY": "env:WANDB_API_KEY"}),
        ("docker run -e HF_TOKEN vllm/vllm-openai m", {"hf_token": "env:HF_TOKEN"}),
        ("docker run -e HF_TOKEN=k3y vllm/vllm-openai m", {"hf_token": "env:HF_TOKEN"}),
    ],
)
def test_keys_become_references_and_are_never_kept(text: str, secrets: dict[str, str]) -> None:
    found = imported(text, HF_TOKEN="k3y", MY_KEY="k3y")
    assert found.profile["secrets"] == secrets
    assert "k3y" not in repr(found)
    if "k3y" in text:
        assert "was not stored" in "\n".join(found.notes)


@pytest.mark.parametrize(
    ("text", "gpus", "note"),
    [
        ("CUDA_VISIBLE_DEVICES= vllm serve m", "cpu", ""),
        ("CUDA_VISIBLE_DEVICES=-1 vllm serve m", "cpu", ""),
        ("CUDA_VISIBLE_DEVICES=0,1 vllm serve m -tp 2", None, "--gpus 0,1"),
        ("CUDA_VISIBLE_DEVICES=0,1 vllm serve m", None, "the profile takes 1"),
        ("docker run --gpus 4 vllm/vllm-openai m -tp 2", None, "the profile takes 2"),
        ("CUDA_VISIBLE_DEVICES=0,1 transformers serve m", 2, "--gpus 0,1"),
    ],
)
def test_gpus_are_counted_not_numbered(text: str, gpus: int | str | None, note: str) -> None:
    found = imported(text)
    assert found.profile.get("gpus") == gpus
    assert note in "\n".join(found.notes)
    assert "CUDA_VISIBLE_DEVICES" not in found.profile.get("env", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no `vllm serve`"),
        ("echo hello", "holds no `vllm serve`"),
        ("vllm bench serve --model m", "`vllm bench serve` starts no server"),
        ("python -m http.server", "starts no server"),
        ("docker ps", "starts no server"),
        ("vllm serve", "names no model"),
        ("vllm serve a b", "names several models (a, b)"),
        ("vllm serve m --max-model-len", "--max-model-len needs a value"),
        ("vllm serve m --port x", "--port x is not a number"),
        ("vllm serve m -zz 1", "-zz is not a flag"),
        ("vllm serve 'm", "is a quote not closed?"),
        ("vllm serve $MODEL", "$MODEL is not set"),
        ("vllm serve $(pick)", "$(pick) cannot be known here"),
        ("vllm serve m --x $HF_TOKEN", "profiles hold no keys"),
        ("vllm serve m --hf-overrides.a null", "cannot be said in TOML"),
        ("docker run -d", "names no image"),
        ("docker run --env-file x vllm/vllm-openai m", "--env-file x is not read"),
        ("docker run ghcr.io/other/engine m", "is not known here"),
        ("docker run -p 8000-8001:8000 vllm/vllm-openai m", "not HOST:CONTAINER"),
    ],
)
def test_what_cannot_be_understood_is_one_line(text: str, said: str) -> None:
    with pytest.raises(InvalidProfileError) as caught:
        imported(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("the command: ")
    assert "\n" not in str(caught.value)


def test_the_first_engine_counts_and_the_rest_is_told() -> None:
    text = "vllm serve a --port 1 && vllm serve b --port 2 | tee log"
    assert imported(text).profile["model"] == "a"
    assert notes_of(text).count("not taken over: vllm …") == 1
    assert "tee …" in notes_of(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vllm serve Org/My_Model-7B", "my_model-7b"),
        ("vllm serve /models/x/", "x"),
        ("vllm serve org/日本", "imported"),
        ("vllm serve org/m --served-model-name 'My Chat!'", "my-chat"),
    ],
)
def test_a_name_is_found(text: str, name: str) -> None:
    assert imported(text).profile["name"] == name
    assert import_command(text, "given", HOME).profile["name"] == "given"


def test_one_that_can_sleep_becomes_a_profile_that_sleeps() -> None:
    text = "VLLM_SERVER_DEV_MODE=1 NCCL_DEBUG=INFO vllm serve org/m --port 8000 --enable-sleep-mode --seed 1"
    found = imported(text).profile
    assert (found["sleep"], found["args"], found["env"]) == (True, {"seed": 1}, {"NCCL_DEBUG": "INFO"})
    assert "--enable-sleep-mode became sleep = true" in notes_of(text)
    text = "VLLM_SERVER_DEV_MODE=1 vllm serve org/m --enable-sleep-mode --no-enable-sleep-mode"
    assert imported(text).profile.keys() & {"sleep", "args"} == set()
    assert imported(text).profile["env"] == {"VLLM_SERVER_DEV_MODE": "1"}


def test_what_is_imported_is_valid() -> None:
    parse_profile(imported("vllm serve org/m --max-model-len 3").profile, "test")
