"""What is warned of among engine arguments, and how a command line is laid over a profile."""

from __future__ import annotations

from typing import Any

import pytest

from profiles.arguments import lint, with_overrides
from profiles.errors import InvalidProfileError
from profiles.schema import parse_profile


def warnings(engine: str = "vllm", **args: Any) -> list[str]:
    data = {"name": "p", "model": "m", "engine": engine, "args": args}
    return [str(problem) for problem in lint(parse_profile(data, "p"))]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"max_model_length": 1}, "did you mean max_model_len?"),
        ({"tensor_parallel": 1}, "did you mean tensor_parallel_size?"),
        ({"gpu_memory_utilisation": 0.9}, "did you mean gpu_memory_utilization?"),
        ({"max_num_seq": 4}, "did you mean max_num_seqs?"),
        ({"quantisation": "awq"}, "did you mean quantization?"),
        ({"swap_space": 4}, "cpu_offload_gb"),
        ({"quantization": "bitsandbytes"}, "transformers"),
        ({"enforce_eager": "true"}, "takes no value"),
        ({"max_model_len": True}, "takes a value"),
        ({"ssl_keyfile": "/x"}, "plain HTTP"),
    ],
)
def test_a_likely_slip_is_warned_of(args: dict[str, Any], said: str) -> None:
    (warning,) = warnings(**args)
    assert said in warning
    assert warning.startswith(f"p: args.{next(iter(args))}: ")


def test_what_only_a_newer_engine_knows_is_left_alone() -> None:
    assert warnings(brand_new_switch=True, fancy_mode="x", no_enable_prefix_caching=True, max_model_len="auto") == []


def test_arguments_of_the_other_engine_are_warned_of() -> None:
    (warning,) = warnings("transformers", max_model_len=2048)
    assert "vLLM, not of transformers serve" in warning
    assert warnings("transformers", quantization="bnb-4bit", compile=True, dtype="auto") == []
    (warning,) = warnings("transformers", quantisation="bnb-4bit")
    assert "did you mean quantization?" in warning


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x=2048", 2048),
        ("x=0.5", 0.5),
        ("x=true", True),
        ("x=auto", "auto"),
        ("x='2048'", "2048"),
        ("x=[1, 2]", [1, 2]),
        ("x={a = 1}", {"a": 1}),
        ("x=", ""),
        ("x=a=b", "a=b"),
        ("x=2024-01-01", "2024-01-01"),
        ("x=1\ny=2", "1\ny=2"),
        ("--x=1", 1),
    ],
)
def test_set_reads_toml_and_bare_text(text: str, value: object) -> None:
    assert with_overrides({"name": "p"}, sets=[text])["args"] == {"x": value}


def test_set_wins_over_the_profile_and_leaves_it_as_it_was() -> None:
    data = {"name": "p", "args": {"max-model-len": 1, "hf_overrides": {"a": {"b": 1}, "c": 2}}, "env": {"A": "1"}}
    merged = with_overrides(data, ["max_model_len=2", "hf-overrides.a.b=3", "new.table-key=1"], ["A=2", "B=x=y"])
    assert merged["args"] == {
        "max_model_len": 2,
        "hf_overrides": {"a": {"b": 3}, "c": 2},
        "new": {"table-key": 1},
    }
    assert merged["env"] == {"A": "2", "B": "x=y"}
    assert data["args"] == {"max-model-len": 1, "hf_overrides": {"a": {"b": 1}, "c": 2}}
    assert data["env"] == {"A": "1"}


def test_what_is_no_assignment_is_refused_without_repeating_a_value() -> None:
    with pytest.raises(InvalidProfileError) as caught:
        with_overrides({}, ["max_model_len", "=1", "a..b=1"], ["A", "=k3y"])
    assert len(caught.value.problems) == 5
    assert "k3y" not in str(caught.value)


def test_a_key_given_with_env_is_refused() -> None:
    merged = with_overrides({"name": "p", "model": "m"}, envs=["HF_TOKEN=abc"])
    with pytest.raises(InvalidProfileError, match="hf_token"):
        parse_profile(merged, "p")
