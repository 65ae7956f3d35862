"""The learner's memory on one long sample: a whole gradient update, each length in a process of its own.

A small Qwen3 with the real vocabulary of 151,936 words: where logits were kept, 131,072 tokens would take 80 GB for
them alone. What remains grows with tokens x hidden; time grows with attention's square.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ulorl.bench.machine_facts import facts
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.errors import UserError

VOCABULARY = 151_936
HIDDEN, LAYERS = 64, 2


def run(lengths: Sequence[int] = (2048, 4096, 8192)) -> dict[str, Any]:
    """Peak memory and seconds of one update at each length, prompt and output, and how memory grows: bytes a token of
    the straight line through first and last, and how far the others are off it."""
    if min(lengths) < 32:
        raise UserError(f"bench learner --tokens {min(lengths)}: give 32 tokens at least; 16 of them are the prompt")
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
    """Peak memory is a process's, so each length gets a fresh one."""
    code = f"from ulorl.bench.learner_bench import update_one; update_one({length}, {torch.get_num_threads()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the update on {length} tokens failed: {done.stderr.strip().splitlines()[-1:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def update_one(length: int, threads: int) -> None:
    """One gradient update on one sample of `length` tokens; prints its figures as JSON."""
    import time

    import numpy as np
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from ulorl.bench.peak_memory import peak_rss
    from ulorl.learner.learner import Learner, LearnerSpec
    from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=length,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    learner = Learner(
        model,
        LearnerSpec(
            optim=OptimConfig(lr=1e-4, recompute=True, microbatch_tokens=length),
            objective=ObjectiveConfig(dynamic_sampling=False),
            temperature=0.85,
            max_tokens=length,
            pad_id=0,
        ),
    )
    rng = np.random.default_rng(0)

    def scored(id: int, tokens: int, reward: float) -> Scored:
        output = rng.integers(0, VOCABULARY, tokens).astype(np.int32)
        segment = Segment(id, output, np.full(tokens, -11.9, np.float32), np.zeros(tokens, np.int32), Finish.EOS)
        return Scored(Sample(id, 0, rng.integers(0, 9, 16).astype(np.int32), (segment,), Status.COMPLETE), reward, "")

    before = peak_rss()
    started = time.perf_counter()
    group = Group(0, Problem("0", "?"), (scored(0, length - 16, 1.0), scored(1, 1, 0.0)))
    update = learner.update([group])
    seconds = time.perf_counter() - started
    peak = peak_rss()
    assert np.isfinite(update.means["train/grad_norm"])
    print(
        json.dumps(
            {
                "tokens": length,
                "seconds": round(seconds, 2),
                "peak_bytes": peak,
                "before_bytes": before,
                "grad_norm": update.means["train/grad_norm"],
            }
        )
    )
