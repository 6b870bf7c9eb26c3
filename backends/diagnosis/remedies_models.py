"""What to do where the model is at fault: its files, its hub, its architecture, its quantization."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from backends.diagnosis.situation import Situation, advice, put
from backends.starts import Remedy

Remedies = list[Remedy]


def _token(it: Situation) -> Remedies:
    secrets = it.profile.get("secrets")
    if isinstance(secrets, Mapping) and "hf_token" in secrets:
        return []
    return [Remedy("Send your token: export HF_TOKEN before the start", {"secrets.hf_token": "env:HF_TOKEN"})]


def _context(it: Situation) -> Remedies:
    sizes = [int(float(size)) for size in re.findall(r"=(\d+(?:\.\d+)?)", it.groups.get("derived", ""))]
    found: Remedies = []
    if sizes:
        most = min(sizes)
        found.append(put(f"Lower max_model_len to {most:,}, all that the model was made for", max_model_len=most))
    found.append(put("Leave max_model_len out: vLLM takes the model's own", max_model_len=None))
    change = {"env.VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    return [*found, Remedy("Insist on it, where the model is known to stand it (answers may turn to noise)", change)]


def _not_found(it: Situation) -> Remedies:
    model = it.model
    if not model.startswith(("/", "~", ".")):
        text = "Correct the model's name: see its page on the hub"
        return [advice(text), *_token(it)]
    path = Path(model).expanduser()
    try:
        folders = [sibling.name for sibling in path.parent.iterdir() if (sibling / "config.json").is_file()]
    except OSError:
        folders = []
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.5)
    if near and near[0] != path.name:
        nearest = str(path.parent / near[0])
        return [Remedy(f"Serve {nearest}, the nearest that is there", {"model": nearest})]
    return [advice(f"Correct model in the profile: {model} is no folder with a config.json")]


def _gated(it: Situation) -> Remedies:
    where = f" at https://huggingface.co/{it.model}" if re.fullmatch(r"[\w.-]+/[\w.-]+", it.model) else ""
    return [*_token(it), advice(f"Accept the model's licence{where}, with the account that the token is of")]


def _bad_token(it: Situation) -> Remedies:
    return [*_token(it), advice("Make a new token that may read the model, and export it as HF_TOKEN")]


def _hub(it: Situation) -> Remedies:
    found: Remedies = []
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if it.env(name):
            found.append(Remedy(f"Let it go online: delete {name}", {f"env.{name}": None}))
    return [
        *found,
        advice("Download the model where there is a network, and give its folder as model"),
        advice("Where a mirror or a proxy can be reached: hub_endpoint in the profile, or HTTPS_PROXY in [env]"),
    ]


def _remote_code(_: Situation) -> Remedies:
    return [put("Run the model's own code, if you trust its author", trust_remote_code=True)]


def _missing(it: Situation) -> Remedies:
    again = advice(f"Download the model again: some files of {it.model or 'it'} are not there")
    if (given := it.arg("load_format")) not in (None, "auto"):
        return [put(f"Look for weights of any format, not only {given}", load_format=None), again]
    return [again]


def _damaged(it: Situation) -> Remedies:
    return [advice(f"Delete the damaged file of {it.model or 'the model'}, and download it again")]


def _architecture(it: Situation) -> Remedies:
    found: Remedies = []
    if "trust_remote_code" in it.groups.get("whole", "") and not it.arg("trust_remote_code"):
        found = _remote_code(it)
    newer = "Use a newer vLLM: python in the profile names the interpreter that has it"
    return [*found, advice(newer)]


def _quantization(it: Situation) -> Remedies:
    found: Remedies = []
    own, choices = it.groups.get("model"), re.findall(r"'([\w-]+)'", it.groups.get("choices", ""))
    if it.arg("quantization") is not None or "asked" in it.groups or "absent" in it.groups or "unknown" in it.groups:
        found.append(put("Leave quantization out: vLLM takes the model's own", quantization=None))
    if own and re.fullmatch(r"[\w-]+", own) and own != "None":
        found.append(put(f'Say what the model is: quantization = "{own}"', quantization=own))
    elif near := difflib.get_close_matches(it.groups.get("unknown", ""), choices, n=1):
        found.insert(0, put(f'Did you mean quantization = "{near[0]}"?', quantization=near[0]))
    return found


def _unsupported(it: Situation) -> Remedies:
    found: Remedies = []
    if it.arg("quantization"):
        found.append(put("Serve the model without it", quantization=None))
    return [*found, advice("Serve a variant that this GPU can: AWQ or GPTQ run on older ones, FP8 from Ada on")]


def _dtype(it: Situation) -> Remedies:
    choices = it.groups.get("choices", "")
    wanted = "half" if not choices or "float16" in choices.replace("bfloat16", "") else "bfloat16"
    found = [put(f'Compute in 16-bit floats: dtype = "{wanted}"', dtype=wanted)]
    return found if it.arg("dtype") != wanted else []


def _template(it: Situation) -> Remedies:
    found: Remedies = []
    if it.groups.get("path") and it.arg("chat_template"):
        found.append(put("Use the model's own chat template", chat_template=None))
    if it.model.startswith("/"):
        inside = Path(it.model) / "chat_template.jinja"
        if inside.is_file() and it.arg("chat_template") != str(inside):
            found.append(put("Use the template in the model's folder", chat_template=str(inside)))
    instruct = "Serve the model's instruct variant, or ask for completions instead of chats"
    return [*found, advice('Give a template: chat_template = "/path/to/template.jinja" under [args]'), advice(instruct)]


MAKERS: dict[str, Callable[[Situation], Remedies]] = {
    "context-too-long": _context,
    "model-not-found": _not_found,
    "model-gated": _gated,
    "bad-token": _bad_token,
    "hub-unreachable": _hub,
    "trust-remote-code": _remote_code,
    "weights-missing": _missing,
    "weights-damaged": _damaged,
    "unknown-architecture": _architecture,
    "quantization-mismatch": _quantization,
    "quantization-unsupported": _unsupported,
    "dtype-unsupported": _dtype,
    "no-chat-template": _template,
}
"""Who makes the remedies of each code."""
