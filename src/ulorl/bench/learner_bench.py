"""The learner's memory for one long sample: a whole gradient update, with a process for each length.

The model is a small Qwen3 with the real vocabulary of 151,936 words: if logits were kept, those of 131,072 tokens would
take 80 GB. The memory that remains grows with tokens x hidden; the time grows with attention's square.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from ulorl.bench.machine_facts import facts
from ulorl.bench.peak_memory import peak_rss
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

VOCABULARY = 151_936
HIDDEN, LAYERS = 64, 2
PROMPT = 16  # tokens


def run(lengths: Sequence[int] = (2048, 4096, 8192)) -> dict[str, Any]:
    """Measure peak memory and seconds of one update at each length, prompt and output together, and how memory grows:
    bytes a token of the straight line through first and last, and how far the others are off it."""
    if min(lengths) < 32:
        message = f"bench learner --tokens {min(lengths)}: give 32 tokens at least; 16 of them are the prompt"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")
    about = facts()
    results = [_in_a_process(length) for length in sorted(set(lengths))]
    first, last = results[0], results[-1]
    span = last["tokens"] - first["tokens"]
    slope = (last["peak_bytes"] - first["peak_bytes"]) / span if span else 0.0
    for result in results:
        line = first["peak_bytes"] + slope * (result["tokens"] - first["tokens"])
        result["off_the_line"] = round(result["peak_bytes"] / line - 1, 4)
        result["logits_would_take_bytes"] = result["tokens"] * VOCABULARY * 4
    return {
        "benchmark": "learner",
        **about,
        "model": f"Qwen3, {LAYERS} layers, hidden {HIDDEN}, vocabulary {VOCABULARY}, float32, activations recomputed",
        **({"bytes_a_token": round(slope)} if span else {}),
        "results": results,
    }


def _in_a_process(length: int) -> dict[str, Any]:
    """Measure one length in a new process, because peak memory is that of a process."""
    code = f"from ulorl.bench.learner_bench import update_one; update_one({length}, {torch.get_num_threads()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the update on {length} tokens failed: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def update_one(length: int, threads: int) -> None:
    """Make one gradient update on one sample of `length` tokens, and print its figures as JSON."""
    torch.set_num_threads(threads)
    learner, group = _small_learner(length), long_group(length)
    before = peak_rss()
    started = time.perf_counter()
    update = learner.update([group])
    seconds = time.perf_counter() - started
    peak = peak_rss()
    grad_norm = update.means["train/grad_norm"]
    assert np.isfinite(grad_norm)
    figures = {"tokens": length, "seconds": round(seconds, 2), "peak_bytes": peak, "before_bytes": before}
    print(json.dumps({**figures, "grad_norm": grad_norm}))


def _small_learner(length: int) -> PolicyLearner:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=length,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    return one_device_learner(
        model,
        LearnerSpec(
            optim=OptimConfig(lr=1e-4, recompute=True, microbatch_tokens=length),
            objective=ObjectiveConfig(dynamic_sampling=False),
            temperature=0.85,
            max_tokens=length,
            pad_id=0,
        ),
    )


def long_group(length: int, vocabulary: int = VOCABULARY) -> Group:
    """Return a group of one sample with `length` tokens, prompt included, and one short sample with another reward."""
    rng = np.random.default_rng(0)

    def scored(id: int, tokens: int, reward: float) -> Scored:
        output = rng.integers(0, vocabulary, tokens).astype(np.int32)
        segment = Segment(id, output, np.full(tokens, -11.9, np.float32), np.zeros(tokens, np.int32), Finish.EOS)
        return Scored(
            Sample(id, 0, rng.integers(0, 9, PROMPT).astype(np.int32), (segment,), Status.COMPLETE), reward, ""
        )

    return Group(0, Problem("0", "?"), (scored(0, length - PROMPT, 1.0), scored(1, 1, 0.0)))
