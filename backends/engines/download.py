"""Downloads a model before its server's turn to start: run as `PYTHON /abs/download.py MODEL [key=value …]`.

PYTHON is the engine's own, whose huggingface_hub puts the files where the engine looks for them. Keys: `revision`, and
`cache_dir` where it is not the usual one. What is in the cache already must do where the hub cannot be reached.
"""

import sys
from pathlib import Path

SAFE_WEIGHTS = ["*.safetensors"]
OTHER_WEIGHTS = ["*.bin", "*.pt"]
BESIDE_WEIGHTS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
NOT_SERVED = ["original/*", "consolidated*"]


def main(model: str, *options: str) -> None:
    """Fetch what is not in the cache yet, of one kind of weights; raises what huggingface_hub raises."""
    from huggingface_hub import snapshot_download

    given = dict(option.split("=", 1) for option in options)
    folder = snapshot_download(
        model, allow_patterns=[*SAFE_WEIGHTS, *BESIDE_WEIGHTS], ignore_patterns=NOT_SERVED, **given
    )
    if not any(Path(folder).glob(SAFE_WEIGHTS[0])):
        snapshot_download(model, allow_patterns=OTHER_WEIGHTS, ignore_patterns=NOT_SERVED, **given)
    print(f"the model is at {folder}", flush=True)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).resolve().parent))  # our http.py is not the standard library's
    main(*sys.argv[1:])
