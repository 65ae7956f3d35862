"""The embedded engine beside transformers' `generate` (static and dynamic cache): same model, prompts and lengths.

EOS is off; every request decodes a length drawn beforehand. `equal` lengths give all three the same work. In
`long_tail` a median of 70 tokens meets a 90th percentile of 310, cut at `max_tokens`, and there are twice as many
requests as slots: `generate` takes them in batches that last as long as their longest request, and only tokens asked
for are counted. `generate` returns no log-probs, which favours it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from ulorl.engines.torch import TorchEngine
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens

_TAIL_SIGMA = 1.161  # of log lengths: ln(310 / 70) / 1.2816, the 90th percentile of a standard normal


@dataclass(frozen=True)
class Work:
    """Prompts and the number of tokens each decodes."""

    prompts: Sequence[Tokens]
    lengths: Sequence[int]


def run(batches: Sequence[int] = (32, 128), max_tokens: int = 256, repeats: int = 5) -> dict[str, Any]:
    """Tokens a second of the three, medians of `repeats` interleaved runs after one warm-up, and their ratios.

    The model has the tiny reasoner's shape (hidden 128, 4 layers, 4 heads, 2 KV heads of 32, vocabulary 110) with
    random weights, float32. Threads are torch's.
    """
    model = tiny_shape(max_tokens + 64)
    results = []
    for batch in batches:
        for name, work in (("equal", equal(batch, max_tokens)), ("long_tail", long_tail(2 * batch, max_tokens))):
            contestants = {
                "engine": partial(decode_with_engine, model, work, batch),
                "generate_static": partial(decode_with_generate, model, work, batch, "static"),
                "generate_dynamic": partial(decode_with_generate, model, work, batch, "dynamic"),
            }
            runs = _interleaved(contestants, repeats)
            rates = {who: sum(work.lengths) / median(seconds) for who, seconds in runs.items()}
            results.append(
                {
                    "lengths": name,
                    "batch": batch,
                    "requests": len(work.prompts),
                    "tokens": sum(work.lengths),
                    "seconds": {who: [round(s, 6) for s in seconds] for who, seconds in runs.items()},
                    "tokens_per_second": {who: round(rate, 1) for who, rate in rates.items()},
                    # least disturbed run: on a shared machine the one to read
                    "best_tokens_per_second": {
                        who: round(sum(work.lengths) / min(seconds), 1) for who, seconds in runs.items()
                    },
                    "ratio_to_static": round(rates["engine"] / rates["generate_static"], 2),
                    "ratio_to_dynamic": round(rates["engine"] / rates["generate_dynamic"], 2),
                }
            )
    return {
        "benchmark": "engine",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "max_tokens": max_tokens,
        "repeats": repeats,
        "results": results,
    }


def tiny_shape(context: int) -> Qwen3ForCausalLM:
    """A model of the tiny reasoner's shape with seeded random weights; no token ends an output."""
    config = Qwen3Config(
        vocab_size=110,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def equal(requests: int, length: int) -> Work:
    """Every request decodes `length` tokens."""
    return Work(_prompts(requests), [length] * requests)


def long_tail(requests: int, max_tokens: int) -> Work:
    """Log-normal lengths: median 70, 90th percentile 310, cut at `max_tokens`."""
    lengths = np.exp(np.random.default_rng(1).normal(np.log(70), _TAIL_SIGMA, requests))
    return Work(_prompts(requests), [int(length) for length in lengths.clip(1, max_tokens)])


def _prompts(requests: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 110, size=rng.integers(8, 17)).astype(np.int32) for _ in range(requests)]


def decode_with_engine(model: Qwen3ForCausalLM, work: Work, batch: int) -> int:
    """Tokens asked for and decoded."""
    engine = TorchEngine(model, eos_ids=(), slots=batch, prefill_tokens=8192)
    for index, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
        engine.add(Request(index, prompt, len(prompt), length, Sampling(), sample_seed(0, index)))
    tokens = 0
    while engine.pending:
        tokens += sum(len(segment) for segment in engine.step())
    return tokens


def decode_with_generate(model: Qwen3ForCausalLM, work: Work, batch: int, cache: str) -> int:
    """Tokens asked for and decoded; prompts are padded on the left, as `generate` wants them."""
    tokens = 0
    for start in range(0, len(work.prompts), batch):
        prompts, lengths = work.prompts[start : start + batch], work.lengths[start : start + batch]
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, longest - len(prompt) :] = 1
        output = model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max(lengths), cache_implementation=cache
        )
        tokens += sum(min(output.shape[1] - longest, length) for length in lengths)
    return tokens


def _interleaved(contestants: Mapping[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run. The first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    decoded = set()
    for _ in range(repeats + 1):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            decoded.add(contestant())
            seconds[name].append(time.perf_counter() - start)
    if len(decoded) != 1:
        raise RuntimeError(f"the contestants did not decode the same number of tokens: {sorted(decoded)}")
    return {name: runs[1:] for name, runs in seconds.items()}
