"""vLLM's own parser takes what profiles say, and agrees with the list of its flags."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

SCRIPT = """
import json, sys
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser
from profiles.flags import STORE_TRUE, VLLM_REPEATED, VLLM_SWITCHES, VLLM_VALUED
from profiles.schema import args_to_argv
from profiles.store import LIBRARY, Place, Store

parser = make_arg_parser(FlexibleArgumentParser())

def read(args):
    found = parser.parse_args(["--model", "m", *args_to_argv(args)])
    return {key: getattr(found, key) for key in args}

library = [entry.profile for entry in Store([Place("library", LIBRARY)]).entries()]
said = json.load(sys.stdin)
kinds = {}
for action in parser._actions:
    for option in action.option_strings:
        name = option.removeprefix("--").replace("-", "_")
        kinds[name] = "switch" if action.nargs == 0 else "repeated" if action.nargs == "+" else "valued"
wrong = [
    name
    for kind, names in (("switch", VLLM_SWITCHES), ("repeated", VLLM_REPEATED), ("valued", VLLM_VALUED))
    for name in names
    if kinds.get(name, kind) != kind
]
wrong += [name for name in VLLM_SWITCHES & kinds.keys() if ("no_" + name in kinds) == (name in STORE_TRUE)]
read_back = {key: value for key, value in read(said).items()}
json.dump(
    {
        "library": {p.name: [p.args, read(p.args)] for p in library if p.engine == "vllm"},
        "read": {**read_back, "lora_modules": [[m.name, m.path] for m in read_back["lora_modules"]]},
        "wrong": wrong,
    },
    open(sys.argv[1], "w"),
)
"""

SAID = {
    "max_model_len": 2048,
    "gpu_memory_utilization": 0.85,
    "seed": -1,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "disable_log_stats": False,
    "hf_overrides": {"a": {"b": [1, 2.5]}, "c": "it's"},
    "lora_modules": ["a=/x", "b=/y z"],
    "cudagraph_capture_sizes": [1, 2],
    "middleware": ["a.b", "c.d"],
    "allowed_origins": ["*", "https://x.example"],
    "limit_mm_per_prompt": {"image": 2},
}


def test_vllms_parser_reads_what_profiles_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("parsed") / "found.json"
    subprocess.run([sys.executable, "-c", SCRIPT, str(out)], input=json.dumps(SAID), text=True, check=True)
    found = json.loads(out.read_text())
    assert found["read"] == SAID | {"lora_modules": [["a", "/x"], ["b", "/y z"]]}
    assert {"demo", "qwen2.5-7b-instruct"} <= found["library"].keys()
    for name, (args, read) in found["library"].items():
        assert read == args, name
    assert found["wrong"] == []
