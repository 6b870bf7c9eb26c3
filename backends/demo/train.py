"""Train the demo model: a small Llama that answers the questions of one JSON-lines file word for word.

`python -I train.py --data qa.jsonl --out FOLDER`, run by the engine's Python: it needs torch, tokenizers and
transformers, and nothing of gpubox. One carriage-return line tells the progress. The folder appears complete or not at
all; where it exists already there is nothing to do. Seeded: the same data and library versions on the same kind of
CPU make the same model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 20
MOST_THREADS = 2
"""The matrices are small: more threads than this only wait for each other."""

VOCABULARY = 4096
HIDDEN, FEED_FORWARD, LAYERS, HEADS, KV_HEADS = 128, 256, 2, 4, 2
CONTEXT = 4096

STEPS = 720
WARM_UP_STEPS = 20
BATCH_TOKENS = 1024
MATRIX_RATE, OTHER_RATE = 7e-3, 3e-2
CHECK_EVERY_EPOCHS = 4
NEWTON_SCHULZ_STEPS = 3
ENOUGH = 0.95
SAFE_MARGIN = 1.5
"""Logits between the right token and the next best one: bfloat16 and other kernels then choose the same token."""

TURNS = (1, 1, 2, 3, 4, 6, 8, 12, 20)
"""How many pairs make one conversation; each is answered on its own whatever was said before it."""

PAD, SYSTEM, USER, ASSISTANT, END = range(5)
SPECIAL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
IGNORED = -100
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}{% generation %}{{- message['content'] + '<|end|>' -}}{% endgeneration %}
{%- else -%}
{{- '<|' + ('system' if message['role'] == 'system' else 'user') + '|>' + message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant who answers briefly.",
    "You are an expert on serving language models.",
    "You are brief.",
    "Answer in one sentence.",
    "Be concise and polite.",
)
REPHRASED = (
    ("What is ", ("What's ", "Explain ", "Define ", "Tell me about ", "Can you explain ", "What exactly is ", "")),
    ("What does ", ("What exactly does ", "Explain what ", "And what does ")),
    ("How do I ", ("How can I ", "How to ", "How would I ", "What do I do to ", "I want to ", "Can you help me ")),
    ("Why is ", ("Why's ", "Can you tell me why is ", "What makes ")),
    ("How much ", ("And how much ", "Roughly how much ")),
    ("Which ", ("What ", "And which ")),
)
ARTICLES = ("a", "an", "the", "my")


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation's token ids, and the same with everything but the answers ignored."""

    ids: list[int]
    labels: list[int]


def say(text: str, end: str = "\n") -> None:
    """Write to standard error at once."""
    print(text, end=end, file=sys.stderr, flush=True)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Return the file's questions and answers; exits with one line where it is not what it should be."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        pairs = [(str(row["question"]), str(row["answer"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"cannot read the questions in {path}: {error!r}")
    if not pairs:
        sys.exit(f"no questions in {path}")
    return pairs


def vary(question: str, rng: random.Random) -> str:
    """Return the question as it stands, or as somebody else might put it."""
    if rng.random() < 0.4:
        return question
    text = question
    for start, others in REPHRASED:
        if text.startswith(start) and rng.random() < 0.6:
            text = rng.choice(others) + text.removeprefix(start)
            break
    words = text.split()
    if rng.random() < 0.3:
        words = [word for word in words if word not in ARTICLES] or words
    if len(words) > 3 and rng.random() < 0.15:
        del words[rng.randrange(len(words))]
    text = " ".join(words)
    if rng.random() < 0.4:
        text = text.rstrip("?")
    return text.lower() if rng.random() < 0.5 else text


class Curriculum:
    """Turns pairs into token ids, conversations and batches."""

    def __init__(self, pairs: Sequence[tuple[str, str]], encode: Callable[[str], list[int]], seed: int) -> None:
        self.questions = [question for question, _ in pairs]
        self.answers = [[*encode(answer), END] for _, answer in pairs]
        self.systems = [*SYSTEMS, *(answer for _, answer in pairs)]
        self.encode = encode
        self.rng = random.Random(seed)

    def conversation(self, turns: Sequence[int], *, plain: bool = False) -> Sample:
        """Return one conversation of these pairs; `plain`: the questions as written, without a system message."""
        ids: list[int] = []
        labels: list[int] = []
        if not plain and self.rng.random() < 0.2:
            system = self.rng.choice(SYSTEMS if self.rng.random() < 0.7 else self.systems)
            ids += [SYSTEM, *self.encode(system), END]
            labels += [IGNORED] * len(ids)
        for turn in turns:
            question = self.questions[turn] if plain else vary(self.questions[turn], self.rng)
            asked = [USER, *self.encode(question), END, ASSISTANT]
            ids += asked + self.answers[turn]
            labels += [IGNORED] * len(asked) + self.answers[turn]
        return Sample(ids, labels)

    def epoch(self) -> list[list[Sample]]:
        """Return batches in which every pair is asked once, at a random place of a random conversation."""
        order = list(range(len(self.questions)))
        self.rng.shuffle(order)
        samples = []
        while order:
            count = self.rng.choice(TURNS)
            samples.append(self.conversation(order[:count]))
            del order[:count]
        made = list(batches(samples))
        self.rng.shuffle(made)
        return made

    def plain(self) -> list[Sample]:
        """Return every question alone, as written."""
        return [self.conversation([turn], plain=True) for turn in range(len(self.questions))]

    def after_another(self) -> list[Sample]:
        """Return every question asked after another one; only its own answer counts."""
        samples = []
        for turn, answer in enumerate(self.answers):
            whole = self.conversation([self.rng.randrange(len(self.questions)), turn], plain=True)
            samples.append(Sample(whole.ids, [IGNORED] * (len(whole.ids) - len(answer)) + answer))
        return samples


def batches(samples: list[Sample]) -> Iterator[list[Sample]]:
    """Group samples of similar length, about BATCH_TOKENS in each batch, padding included."""
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: len(sample.ids)):
        if batch and (len(batch) + 1) * len(sample.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def train_tokenizer(pairs: Sequence[tuple[str, str]]) -> Any:
    """Return a byte-level BPE tokenizer that was trained on the pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = (text for question, answer in pairs for text in (question, question.lower(), answer))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(vocabulary: int) -> Any:
    """Return an untrained Llama of about 0.7 million parameters."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    # top_k 1: whatever temperature a client sends, the answers stay those that were learned.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, eos_token_id=END, pad_token_id=PAD)
    return model


class Muon:
    """Momentum, made orthogonal: a matrix learns by heart in a third of the steps that Adam takes.

    Keller Jordan's method. torch.optim has one, but it computes in bfloat16 only, which CPUs without that type do
    thirty times slower. Matrices of one shape are handled together, since each is small.
    """

    def __init__(self, matrices: Sequence[Any]) -> None:
        import torch

        self.groups: dict[tuple[int, int], list[Any]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
        self.momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}

    def step(self, rate: float) -> None:
        """Change every matrix by its gradient; `rate` compares to Adam's."""
        import torch

        for shape, group in self.groups.items():
            momentum = self.momenta[shape]
            wide = [matrix.shape[0] <= matrix.shape[1] for matrix in group]
            gradients = torch.stack([m.grad if w else m.grad.T for m, w in zip(group, wide, strict=True)])
            momentum.lerp_(gradients, 0.05)
            change = gradients.lerp_(momentum, 0.95)
            change /= change.norm(dim=(1, 2), keepdim=True) + 1e-7
            for _ in range(NEWTON_SCHULZ_STEPS):
                gram = change @ change.mT
                change = 3.4445 * change + (-4.7750 * gram + 2.0315 * gram @ gram) @ change
            scale = 0.2 * math.sqrt(max(shape)) * rate
            for matrix, delta, is_wide in zip(group, change, wide, strict=True):
                matrix.sub_(delta if is_wide else delta.T, alpha=scale)


class Trainer:
    """A model in training, and how well it knows its answers."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model = model
        named = list(model.named_parameters())
        self.matrices = Muon([p for name, p in named if p.ndim == 2 and "embed" not in name])
        self.others = torch.optim.AdamW(
            [p for name, p in named if p.ndim != 2 or "embed" in name], betas=(0.9, 0.95), weight_decay=0.0
        )

    def predict(self, batch: Sequence[Sample]) -> tuple[Any, Any, Any]:
        """Return the logits where an answer's token is due, those tokens, and which places of the batch they are."""
        import torch

        length = max(len(sample.ids) for sample in batch)
        ids = torch.tensor([s.ids + [PAD] * (length - len(s.ids)) for s in batch])
        labels = torch.tensor([s.labels + [IGNORED] * (length - len(s.labels)) for s in batch])[:, 1:]
        hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        due = labels != IGNORED
        return self.model.lm_head(hidden[due]), labels[due], due

    def learn(self, batch: Sequence[Sample], pace: float) -> float:
        """Do one step at `pace` (0–1) of the full rates; returns the loss."""
        import torch

        logits, tokens, _ = self.predict(batch)
        loss = torch.nn.functional.cross_entropy(logits, tokens)
        self.model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.others.param_groups:
            group["lr"] = OTHER_RATE * pace
        self.others.step()
        with torch.no_grad():
            self.matrices.step(MATRIX_RATE * pace)
        return float(loss.item())

    def margins(self, samples: list[Sample]) -> list[float]:
        """Return for each sample by how much its weakest token leads; above 0, greedy decoding gives it exactly.

        Greedy decoding follows the answer as long as each of its tokens is the likeliest after those before it, so
        one pass over the answers tells what decoding them one by one would.
        """
        import torch

        weakest: list[float] = []
        with torch.no_grad():
            for batch in batches(samples):
                logits, tokens, due = self.predict(batch)
                right = logits.gather(1, tokens[:, None])
                lead = right - logits.scatter(1, tokens[:, None], -math.inf).amax(1, keepdim=True)
                places = torch.full(due.shape, math.inf)
                places[due] = lead[:, 0]
                weakest += places.amin(1).tolist()
        return weakest


def train(pairs: Sequence[tuple[str, str]], seed: int) -> tuple[Any, Any, float]:
    """Return the model, its tokenizer, and the share of questions that it answers exactly."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(min(MOST_THREADS, torch.get_num_threads()))
    tokenizer = train_tokenizer(pairs)
    lessons = Curriculum(pairs, lambda text: list(tokenizer.encode(text).ids), seed)
    trainer = Trainer(make_model(tokenizer.get_vocab_size()))
    step, epoch, told_at = 0, 0, 0.0
    while True:
        for batch in lessons.epoch():
            pace = min((step + 1) / WARM_UP_STEPS, 1 - step / STEPS)
            loss = trainer.learn(batch, pace)
            step += 1
            if time.monotonic() - told_at > 0.25:
                told_at = time.monotonic()
                say(f"\rtraining the demo model: {100 * step // STEPS}% step {step}/{STEPS} loss {loss:.3f}", end="")
            if step == STEPS:
                break
        epoch += 1
        if step < STEPS and epoch % CHECK_EVERY_EPOCHS:
            continue
        alone, after = trainer.margins(lessons.plain()), trainer.margins(lessons.after_another())
        if step == STEPS or (min(alone) > SAFE_MARGIN and sum(margin > 0 for margin in after) / len(after) > 0.99):
            break
    exact = sum(margin > 0 for margin in alone) / len(alone)
    result = f"step {step}/{STEPS} loss {loss:.3f}, {exact:.1%} of {len(pairs)} answers exact"
    say(f"\rtraining the demo model: 100% {result}")
    return trainer.model, tokenizer, exact


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model, tokenizer and chat template beside `folder`, and rename: it appears complete or not at all."""
    from transformers import PreTrainedTokenizerFast, logging

    logging.disable_progress_bar()
    partial = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        kept = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[END], pad_token=SPECIAL[PAD])
        kept.chat_template = CHAT_TEMPLATE
        kept.model_max_length = CONTEXT
        kept.save_pretrained(partial)
        model.save_pretrained(partial)
        partial.rename(folder)
    except OSError:
        # Another builder was quicker; both make the same model.
        if not (folder / "config.json").exists():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main() -> None:
    """Train and save, or exit with one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if (args.out / "config.json").exists():
        return
    # Threads that spin while they wait take three times as long on a machine that has other work to do.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    begun = time.monotonic()
    model, tokenizer, exact = train(read_pairs(args.data), SEED)
    if exact < ENOUGH:
        sys.exit(f"the demo model answers only {exact:.0%} of its questions, too few to be kept")
    save(model, tokenizer, args.out)
    say(f"the demo model is ready after {time.monotonic() - begun:.0f} s: {args.out}")


if __name__ == "__main__":
    main()
