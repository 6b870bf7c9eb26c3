"""What a profile may say, and how every refusal tells where it is and what to do."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from profiles.errors import InvalidProfileError, ProfileProblem
from profiles.schema import Profile, args_to_argv, parse_profile


def parsed(text: str) -> Profile:
    return parse_profile({"name": "p"} | tomllib.loads(text), "p.toml", text)


def problems(text: str) -> tuple[ProfileProblem, ...]:
    with pytest.raises(InvalidProfileError) as caught:
        parsed(text)
    return caught.value.problems


def only_problem(text: str) -> ProfileProblem:
    found = problems(text)
    assert len(found) == 1, found
    return found[0]


MODEL = 'model = "org/model"\n'


def test_a_profile_that_says_only_its_model_has_every_default() -> None:
    profile = parsed(MODEL)
    assert (profile.engine, profile.source, profile.served_name) == ("vllm", "hub", "org/model")
    assert (profile.host, profile.port, profile.gpus, profile.drain_s) == ("127.0.0.1", "auto", 1, 5.0)
    assert (profile.restart.policy, profile.logs.keep, profile.logs.max_mb) == ("never", 10, 64)
    assert profile.model_fields_set == {"name", "model"}


@pytest.mark.parametrize(
    ("model", "source", "served_name"),
    [
        ("org/model", "hub", "org/model"),
        ("/models/x-7b", "local", "x-7b"),
        ("/models/x-7b/", "local", "x-7b"),
        ("~/x", "local", "x"),
        ("gpt2", "hub", "gpt2"),
    ],
)
def test_source_and_served_name_follow_from_the_model(model: str, source: str, served_name: str) -> None:
    profile = parsed(f'model = "{model}"')
    assert (profile.source, profile.served_name) == (source, served_name)


def test_paths_with_a_tilde_are_those_of_the_user() -> None:
    profile = parsed('model = "~/m"\npython = "~/venv/bin/python"')
    assert profile.model == str(Path.home() / "m")
    assert profile.python == str(Path.home() / "venv/bin/python")


def test_transformers_serves_a_local_model_under_its_own_name() -> None:
    assert parsed('engine = "transformers"\nmodel = "/models/x"').served_name == "/models/x"
    assert only_problem('engine = "transformers"\nmodel = "/models/x"\nserved_name = "x"').where == "served_name"


@pytest.mark.parametrize(
    ("args", "gpus"),
    [
        ("", 1),
        ("tensor_parallel_size = 4", 4),
        ("tensor-parallel-size = 2\npipeline_parallel_size = 2\ndata_parallel_size = 2", 8),
        ("data_parallel_size = 16\ndata_parallel_size_local = 4\ntensor_parallel_size = 2", 8),
        ("data_parallel_size = 4\ndata_parallel_rank = 1", 1),
        ("tensor_parallel_size = 16\nnnodes = 2", 8),
    ],
)
def test_gpus_are_what_the_parallel_sizes_make(args: str, gpus: int) -> None:
    assert parsed(f"{MODEL}[args]\n{args}").gpus == gpus


def test_gpus_that_contradict_the_parallel_sizes_are_refused() -> None:
    problem = only_problem(f"{MODEL}gpus = 2\n[args]\ntensor_parallel_size = 4")
    assert (problem.where, problem.line) == ("gpus", 2)
    assert "gpus = 4" in problem.suggestion


def test_the_cpu_contradicts_no_parallel_size() -> None:
    assert parsed(f'{MODEL}gpus = "cpu"\n[args]\ntensor_parallel_size = 2').gpus == "cpu"


def test_transformers_may_spread_over_several_gpus() -> None:
    assert parsed(f'{MODEL}engine = "transformers"\ngpus = 2').gpus == 2


@pytest.mark.parametrize(
    ("text", "where", "line", "said"),
    [
        ("modell = 1\n" + MODEL, "modell", 1, "did you mean model?"),
        (MODEL + "max_model_len = 2048", "max_model_len", 2, "[args]: max_model_len"),
        (MODEL + "max_model_length = 2048", "max_model_length", 2, "[args]: max_model_len"),
        (MODEL + 'engine = "vlm"', "engine", 2, "did you mean vllm?"),
        (MODEL + "[restart]\npolici = 'never'", "restart.polici", 3, "did you mean policy?"),
        (MODEL + "[logs]\nkeep = 0", "logs.keep", 3, "greater than or equal to 1"),
        (MODEL + "gpus = 0", "gpus", 2, "--gpus 6,7"),
        (MODEL + "gpus = true", "gpus", 2, "not a number of GPUs"),
        (MODEL + 'gpus = "6,7"', "gpus", 2, "--gpus 6,7"),
        (MODEL + "port = 70000", "port", 2, "1 to 65535"),
        (MODEL + 'port = "8000"', "port", 2, "not a port"),
        (MODEL + 'host = "http://x"', "host", 2, "0.0.0.0"),
        (MODEL + 'python = "python3"', "python", 2, "full path"),
        (MODEL + 'hub_endpoint = "hf-mirror.example"', "hub_endpoint", 2, "https://"),
        (MODEL + 'hub_endpoint = "https://me:key@hub.example"', "hub_endpoint", 2, "hf_token"),
        ('model = "/m"\nhub_endpoint = "https://hub.example"', "hub_endpoint", 2, "from the hub"),
        ('model = "./m"', "model", 1, "from / or ~"),
        ('model = ""', "model", 1, "one line of text"),
        (MODEL + 'source = "local"', "source", 2, "not a path"),
        ('model = "/m"\nsource = "hub"', "source", 2, "is a path"),
        (MODEL + "drain_s = -1", "drain_s", 2, "greater than or equal to 0"),
        (MODEL + "[args]\nport = 1", "args.port", 3, "own key: port"),
        (MODEL + "[args]\nserved-model-name = 'x'", "args.served-model-name", 3, "served_name"),
        (MODEL + "[args]\napi_key = 'x'", "args.api_key", 3, "[secrets] api_key"),
        (MODEL + "[args]\nuds = '/x'", "args.uds", 3, "sockets"),
        (MODEL + "[args]\nenable-sleep-mode = true", "args.enable-sleep-mode", 3, "own key: sleep = true"),
        (MODEL + "[args]\nttl = 5", "args.ttl", 3, "a key of the profile"),
        (MODEL + "sleep = 1", "sleep", 2, "true or false"),
        (MODEL + "sleep = true\nengine = 'transformers'", "sleep", 2, "transformers serve cannot sleep"),
        (MODEL + "gpus = 'cpu'\nsleep = true", "sleep", 3, "the CPU build has no sleep mode"),
        (MODEL + "sleep = true\n[args]\nssl_certfile = '/c'", "sleep", 2, "let a proxy do TLS"),
        (MODEL + "sleep = true\n[env]\nVLLM_SERVER_DEV_MODE = '0'", "sleep", 2, "delete that from env"),
        (MODEL + "ttl = 5", "ttl", 2, "set sleep = true"),
        (MODEL + "sleep = true\nttl = 0", "ttl", 3, "greater than 0"),
        (MODEL + "sleep = true\nttl = inf", "ttl", 3, "less than or equal"),
        (MODEL + "wake_on_request = true", "wake_on_request", 2, "set sleep = true"),
        (MODEL + "prime = true", "prime", 2, "set sleep = true"),
        (MODEL + "[args]\ngpus = 2", "args.gpus", 3, "a key of the profile"),
        (MODEL + "[args]\ndevice_ids = '6,7'", "args.device_ids", 3, "--gpus 6,7"),
        (MODEL + "[args]\nx = 1979-05-27", "args.x", 3, "is a date"),
        (MODEL + "[args]\nx = []", "args.x", 3, "empty list"),
        (MODEL + "[args]\nx = nan", "args.x", 3, "is a float"),
        (MODEL + "[args]\n'--x' = 1", "args.--x", 3, "write it so"),
        (MODEL + "[args]\na-b = 1\na_b = 2", "args", 2, "same argument"),
        (MODEL + "[env]\nA = 1", "env.A", 3, "in quotes"),
        (MODEL + "[env]\nCUDA_VISIBLE_DEVICES = '6'", "env.CUDA_VISIBLE_DEVICES", 3, "--gpus 6,7"),
        (MODEL + "[env]\n'A B' = '6'", "env.A B", 3, "not a variable's name"),
        (MODEL + "[env]\nHF_TOKEN = 'x'", "env.HF_TOKEN", 3, '[secrets] hf_token = "env:HF_TOKEN"'),
        (MODEL + "[env]\nWANDB_API_KEY = 'x'", "env.WANDB_API_KEY", 3, '[secrets] WANDB_API_KEY = "env:WANDB_API_KEY"'),
        (MODEL + "[secrets]\nhf_tokn = 'env:A'", "secrets.hf_tokn", 3, "did you mean hf_token?"),
        (MODEL + "[secrets]\nHF_TOKEN = 'env:A'", "secrets.HF_TOKEN", 3, "write hf_token"),
        (MODEL + "[secrets]\nhf_token = 'file:relative'", "secrets.hf_token", 3, "from / or ~"),
        (MODEL + "engine = 'transformers'\n[secrets]\napi_key = 'env:A'", "secrets", 3, "asks for none"),
    ],
)
def test_a_refusal_says_where_and_what_to_do(text: str, where: str, line: int, said: str) -> None:
    problem = only_problem(text)
    assert (problem.file, problem.where, problem.line) == ("p.toml", where, line)
    assert said in str(problem)
    assert str(problem).startswith(f"p.toml:{line}: {where}: ")
    assert "\n" not in str(problem)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_memory_that_cannot_be_given_back_does_not_sleep(name: str) -> None:
    text = f"{MODEL}sleep = true\n[env]\n{name} = '%s'"
    problem = only_problem(text % "max_split_size_mb:512, expandable_segments:True")
    assert problem.where == "sleep"
    assert "frees nothing" in str(problem)
    assert parsed(text % "max_split_size_mb:512,expandable_segments:False").sleep


def test_a_profile_sleeps_only_where_it_says_so() -> None:
    plain = parsed(MODEL)
    assert (plain.sleep, plain.ttl, plain.wake_on_request, plain.prime) == (False, None, False, False)
    full = parsed(MODEL + "sleep = true\nttl = 30\nwake_on_request = true\nprime = true")
    assert (full.sleep, full.ttl, full.wake_on_request, full.prime) == (True, 30.0, True, True)
    assert full.gpus == 1


@pytest.mark.parametrize("name", ["", "A", "-x", ".x", "a/b", "a b", "x" * 65])
def test_a_name_is_fit_for_files_and_commands(name: str) -> None:
    with pytest.raises(InvalidProfileError):
        parse_profile({"name": name, "model": "m"}, "p.toml")


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    found = problems('port = 0\nname = "B"\n[args]\nhost = "x"\n[env]\nA = 2\n')
    assert [p.where for p in found] == ["model", "port", "name", "args.host", "env.A"]


@pytest.mark.parametrize("where", ["secrets", "env", "args"])
def test_a_key_in_a_profile_is_refused_and_never_repeated(where: str) -> None:
    key = "hf_" + "s3cret" * 6
    name = {"secrets": "api_key", "env": "SOME_VALUE", "args": "some_value"}[where]
    text = f'{MODEL}[{where}]\n{name} = "{key}"'
    with pytest.raises(InvalidProfileError) as caught:
        parsed(text)
    assert "secrets" in str(caught.value)
    assert key not in str(caught.value)
    assert key not in repr(caught.value.problems)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "VLLM_MAX_TOKENS_PER_EXPERT", "KEYBOARD", "MONKEY"])
def test_a_variable_that_only_sounds_like_a_key_is_none(name: str) -> None:
    assert parsed(f'{MODEL}[env]\n{name} = "1"').env == {name: "1"}


@pytest.mark.parametrize(
    "value", ["skywork-reward_model_of_a_long_name", "ghostwriter_3000_of_some_length", "hf_x", "sk-1"]
)
def test_a_value_that_only_begins_like_a_key_is_none(value: str) -> None:
    assert parsed(f'{MODEL}[env]\nA = "{value}"').env == {"A": value}


@pytest.mark.parametrize("key", ["hf_" + "aB3" * 11, "sk-proj-" + "a1_-" * 8, "ghp_" + "x" * 36, "AKIA" + "Z7" * 8])
def test_a_value_that_is_a_key_by_its_form_is_refused(key: str) -> None:
    assert key not in str(only_problem(f'{MODEL}[env]\nA = "{key}"'))


def test_argument_names_are_read_with_dashes_and_underscores() -> None:
    profile = parsed(f"{MODEL}[args]\nmax-model-len = 1\nenable_lora = true")
    assert list(profile.args) == ["max_model_len", "enable_lora"]


@pytest.mark.parametrize(
    ("toml", "argv"),
    [
        ("max_model_len = 2048", ["--max-model-len", "2048"]),
        ("gpu_memory_utilization = 0.9", ["--gpu-memory-utilization", "0.9"]),
        ("x = 1e-7", ["--x", "1e-07"]),
        ("seed = -1", ["--seed=-1"]),
        ("enforce_eager = true", ["--enforce-eager"]),
        ("enable_prefix_caching = false", ["--no-enable-prefix-caching"]),
        ("disable_log_stats = false", []),
        ("dtype = 'half'", ["--dtype", "half"]),
        ("chat_template = ''", ["--chat-template", ""]),
        ("stop = '--x'", ["--stop=--x"]),
        ("lora_modules = ['a=/x', 'b=/y z']", ["--lora-modules", "a=/x", "b=/y z"]),
        ("cudagraph_capture_sizes = [1, 2]", ["--cudagraph-capture-sizes", "1", "2"]),
        ("lora_modules = [{name = 'a', path = '/x'}]", ["--lora-modules", '{"name": "a", "path": "/x"}']),
        ("middleware = ['a.b', 'c.d']", ["--middleware", "a.b", "--middleware", "c.d"]),
        ("allowed_origins = ['*']", ["--allowed-origins", '["*"]']),
        ("hf_overrides = {a = {b = [1, 2.5, true]}, 'ü' = 'é'}", None),
    ],
)
def test_arguments_become_a_command_line(toml: str, argv: list[str] | None) -> None:
    args = tomllib.loads(toml)
    found = args_to_argv(parse_profile({"name": "p", "model": "m", "args": args}, "p").args)
    if argv is None:
        assert found[0] == "--hf-overrides"
        assert json.loads(found[1]) == args["hf_overrides"]
    else:
        assert found == argv


def test_a_profile_survives_the_way_through_json_to_the_keeper() -> None:
    text = (
        f"{MODEL}drain_s = 2\n[args]\na = 1.0\nb = [1]\nc = {{d = 1}}\n[restart]\npolicy = 'on-failure'\nbackoff_s = 1"
    )
    data: dict[str, Any] = {"name": "p"} | tomllib.loads(text)
    assert parse_profile(json.loads(json.dumps(data)), "p") == parsed(text)


def test_a_profile_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed(MODEL).port = 1
