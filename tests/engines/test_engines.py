"""The main job on real engines: vLLM and `transformers serve` on the CPU, under a real keeper."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from openai import OpenAI

from backends import paths
from backends.client import KeeperClient, ensure_keeper
from backends.errors import NoSuchServerError
from backends.processes.logs import split_stamp
from backends.snapshots import Metrics, Missing, ModelKind, Server, ServerState
from tui.launching import LaunchIntent, open_store, read_launchable

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QA = Path(__file__).parents[2] / "profiles" / "demo" / "qa.jsonl"
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d ")


@dataclass
class Home:
    """A keeper for all tests of this file, and what they ask of it."""

    client: KeeperClient

    def start(self, profile: str, *sets: str, **wishes: str) -> Server:
        intent = LaunchIntent(profile, ("cpu",), 0, sets, name=wishes.get("name"))
        return ensure_keeper(self.client).start(read_launchable(open_store(None), profile).request(intent))

    def server(self, name: str) -> Server:
        return next(server for server in self.client.snapshot().servers if server.name == name)

    def until(self, name: str, wanted: Callable[[Server], bool], patience_s: float = 240.0) -> Server:
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            server = self.server(name)
            if wanted(server):
                return server
            time.sleep(0.2)
        raise AssertionError(f"{name} never got there: {self.server(name)}")

    def ended(self, name: str) -> Server:
        return self.until(name, lambda server: not server.is_live)

    def ready(self, name: str) -> Server:
        server = self.until(name, lambda server: server.state is ServerState.READY or not server.is_live)
        assert server.state is ServerState.READY, f"{server.cause}\n{Path(server.log_path or '').read_text()}"
        return server

    def stop(self, name: str) -> Server:
        self.client.stop(name)
        return self.ended(name)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Iterator[Home]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUBOX_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("GPUBOX_DEMO_MODEL_DIR", str(demo_model.parent))
        home = Home(KeeperClient())
        yield home
        for server in ensure_keeper(home.client).snapshot().servers:
            if server.is_live:
                home.client.stop(server.name, force=True)
                home.ended(server.name)
        home.client.shutdown()


@pytest.fixture(scope="module")
def vllm(home: Home) -> Server:
    home.start("demo")
    return home.ready("demo")


def talk_to(server: Server) -> OpenAI:
    return OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


def ask(client: OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0.0, max_tokens=256
    )
    return answer.choices[0].message.content or ""


def test_vllm_says_what_it_serves(vllm: Server) -> None:
    assert vllm.kind is ModelKind.CHAT
    assert vllm.engine_version
    assert vllm.max_model_len
    assert [model.id for model in talk_to(vllm).models.list()] == [vllm.served_name]


def test_the_demo_model_answers_its_own_questions(vllm: Server) -> None:
    pairs = [json.loads(line) for line in QA.read_text().splitlines()]
    client = talk_to(vllm)
    right = sum(ask(client, vllm.served_name, pair["question"]) == pair["answer"] for pair in pairs)
    assert len(pairs) >= 200
    assert right >= 0.9 * len(pairs), f"{right} of {len(pairs)} exact"


def test_an_answer_streams_and_the_metrics_move(home: Home, vllm: Server) -> None:
    before = home.until("demo", lambda s: isinstance(s.metrics, Metrics)).metrics
    stream = talk_to(vllm).chat.completions.create(
        model=vllm.served_name, messages=[{"role": "user", "content": "What is the KV cache?"}], stream=True
    )
    pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 1
    assert isinstance(before, Metrics)
    assert isinstance(before.generation_tokens_total, int)
    more = before.generation_tokens_total

    def moved(server: Server) -> bool:
        metrics = server.metrics
        return (
            isinstance(metrics, Metrics)
            and not isinstance(metrics.generation_tokens_total, Missing)
            and (metrics.generation_tokens_total > more)
        )

    after = home.until("demo", moved, 20.0).metrics
    assert isinstance(after, Metrics)
    assert not isinstance(after.ttft, Missing)
    assert after.ttft.count > 0
    assert isinstance(after.kv_cache_tokens, int)


def test_the_log_is_stamped_and_free_of_our_scraping(vllm: Server) -> None:
    lines = Path(vllm.log_path or "").read_text().splitlines()
    assert len(lines) > 20
    assert all(STAMP.match(line) for line in lines)
    assert [split_stamp(line)[0] for line in lines] == sorted(
        stamp for line in lines if (stamp := split_stamp(line)[0])
    )
    assert any("POST /v1/chat/completions" in line for line in lines)
    assert not any("/metrics" in line and "GET" in line for line in lines if "Route" not in line)
    assert not any("\x1b" in line or "\r" in line for line in lines)


def test_a_model_without_a_chat_template_completes_only(home: Home, demo_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in demo_model.iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    profiles = paths.private(paths.profile_dir())
    demo = (QA.parents[1] / "library" / "demo.toml").read_text()
    demo = re.sub(r"(?m)^(name|source|model|served_name)\s*=.*\n", "", demo)
    (profiles / "base.toml").write_text(f'model = "{base}"\nserved_name = "base"\n{demo}')
    home.start("base")
    server = home.ready("base")
    assert server.kind is ModelKind.COMPLETION
    home.stop("base")


def test_transformers_serve_serves_the_same_model(home: Home) -> None:
    profiles = paths.private(paths.profile_dir())
    (profiles / "tf.toml").write_text('engine = "transformers"\nmodel = "demo"\nsource = "demo"\ngpus = "cpu"\n')
    home.start("tf")
    server = home.ready("tf")
    assert server.kind is ModelKind.CHAT
    assert isinstance(server.metrics, Missing)
    pair = json.loads(QA.read_text().splitlines()[0])
    assert ask(talk_to(server), server.served_name, pair["question"]) == pair["answer"]
    stopped = home.stop("tf")
    assert stopped.state is ServerState.STOPPED


def test_a_bad_argument_is_told_in_one_line(home: Home) -> None:
    home.start("demo", "max_model_len=100000", name="long")
    failed = home.ended("long")
    assert failed.cause is not None
    assert "max_model_len 100000 is more than the model was made for" in failed.cause


def test_a_stop_leaves_nothing(home: Home, vllm: Server) -> None:
    assert vllm.pid is not None
    engine = psutil.Process(vllm.pid)
    tree = [engine, *engine.children(recursive=True)]
    assert len(tree) > 1
    shared_before = {name for name in os.listdir("/dev/shm") if name.startswith("psm_")}
    stopped = home.stop("demo")
    assert stopped.state is ServerState.STOPPED
    assert stopped.exit is not None
    assert stopped.exit.asked
    assert not any(process.is_running() for process in tree)
    assert {name for name in os.listdir("/dev/shm") if name.startswith("psm_")} <= shared_before
    with pytest.raises(NoSuchServerError):
        home.client.stop("nobody")
