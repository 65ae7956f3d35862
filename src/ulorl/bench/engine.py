"""The embedded engine beside transformers' `generate` (static and dynamic cache) and, where it is installed, vLLM: same
model, prompts and lengths.

EOS is off; every request decodes a length drawn beforehand. `equal` lengths give all three the same work. In
`long_tail` a median of 70 tokens meets a 90th percentile of 310, cut at `max_tokens`, and there are twice as many
requests as slots: `generate` takes them in batches that last as long as their longest request, and only tokens asked
for are counted. `generate` returns no log-probs, which favours it. vLLM runs in this process, eager, with the threads
of the others, started before the clock; its seeds are those of the embedded engine's requests.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from ulorl import config
from ulorl.engines.base import Engine
from ulorl.engines.torch import TorchEngine
from ulorl.errors import UserError
from ulorl.learner.model import load_model, resolve
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens

_TAIL_SIGMA = 1.161  # of log lengths: ln(310 / 70) / 1.2816, the 90th percentile of a standard normal


@dataclass(frozen=True)
class Work:
    """Prompts and the number of tokens each decodes."""

    prompts: Sequence[Tokens]
    lengths: Sequence[int]


def run(
    models: Sequence[str] = (), batches: Sequence[int] = (32, 128), max_tokens: int = 256, repeats: int = 5
) -> dict[str, Any]:
    """Tokens a second of each, medians of `repeats` interleaved runs after one warm-up, and their ratios, float32.

    models: model folders; without one, the tiny reasoner's shape (hidden 128, 4 layers, 4 heads, 2 KV heads of 32,
    vocabulary 110) with random weights. Threads are torch's.
    """
    threads = torch.get_num_threads()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if not models:
            tiny_shape(max_tokens + 64).save_pretrained(folder)
        for path in models or (folder,):
            model = load_model(path, dtype=torch.float32, device="cpu")
            for batch in batches:
                for name, work in (
                    ("equal", equal(batch, max_tokens, model.config.vocab_size)),
                    ("long_tail", long_tail(2 * batch, max_tokens, model.config.vocab_size)),
                ):
                    with _contestants(path, model, work, batch) as contestants:
                        runs = _interleaved(contestants, repeats)
                    results.append({"model": path if models else "tiny shape", **_result(name, batch, work, runs)})
    vllm = _vllm_version()
    return {
        "benchmark": "engine",
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **({"vllm": vllm} if vllm else {}),
        "max_tokens": max_tokens,
        "repeats": repeats,
        "results": results,
    }


def _result(name: str, batch: int, work: Work, runs: Mapping[str, list[float]]) -> dict[str, Any]:
    rates = {who: sum(work.lengths) / median(seconds) for who, seconds in runs.items()}
    peers = {"generate_static": "static", "generate_dynamic": "dynamic", "vllm": "vllm"}
    return {
        "lengths": name,
        "batch": batch,
        "requests": len(work.prompts),
        "tokens": sum(work.lengths),
        "seconds": {who: [round(s, 6) for s in seconds] for who, seconds in runs.items()},
        "tokens_per_second": {who: round(rate, 1) for who, rate in rates.items()},
        # least disturbed run: on a shared machine the one to read
        "best_tokens_per_second": {who: round(sum(work.lengths) / min(seconds), 1) for who, seconds in runs.items()},
        **{f"ratio_to_{peers[who]}": round(rates["engine"] / rates[who], 2) for who in rates if who in peers},
    }


@contextmanager
def _contestants(path: str, model: PreTrainedModel, work: Work, batch: int) -> Iterator[dict[str, Callable[[], int]]]:
    """Who takes part; vLLM is started here and stopped afterwards."""
    found: dict[str, Callable[[], int]] = {
        "engine": partial(decode_with_engine, model, work, batch),
        "generate_static": partial(decode_with_generate, model, work, batch, "static"),
        "generate_dynamic": partial(decode_with_generate, model, work, batch, "dynamic"),
    }
    if not _vllm_version():
        yield found
        return
    from ulorl.engines.vllm import VllmEngine

    engine = VllmEngine(
        resolve(path),
        eos_ids=(),
        slots=batch,
        prefill_tokens=8192,
        max_length=max(work.lengths) + max(map(len, work.prompts)),
        dtype="float32",
        temperature=1.0,
        settings=config.Vllm(eager=True),
        device=torch.device("cpu"),
    )
    with closing(engine):
        yield found | {"vllm": partial(_decode, engine, work)}


def _vllm_version() -> str | None:
    from ulorl.engines.vllm import require_vllm

    try:
        return require_vllm()
    except UserError:
        return None


def tiny_shape(context: int, vocabulary: int = 110, eos_token_id: int | None = None) -> Qwen3ForCausalLM:
    """A model of the tiny reasoner's shape with seeded random weights; no token ends an output unless one is named."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(config).eval()


def equal(requests: int, length: int, vocabulary: int = 110) -> Work:
    """Every request decodes `length` tokens."""
    return Work(_prompts(requests, vocabulary), [length] * requests)


def long_tail(requests: int, max_tokens: int, vocabulary: int = 110) -> Work:
    """Log-normal lengths: median 70, 90th percentile 310, cut at `max_tokens`."""
    lengths = np.exp(np.random.default_rng(1).normal(np.log(70), _TAIL_SIGMA, requests))
    return Work(_prompts(requests, vocabulary), [int(length) for length in lengths.clip(1, max_tokens)])


def _prompts(requests: int, vocabulary: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, vocabulary, size=rng.integers(8, 17)).astype(np.int32) for _ in range(requests)]


def decode_with_engine(model: PreTrainedModel, work: Work, batch: int) -> int:
    """Tokens asked for and decoded."""
    return _decode(TorchEngine(model, eos_ids=(), slots=batch, prefill_tokens=8192), work)


def _decode(engine: Engine, work: Work) -> int:
    for index, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
        engine.add(Request(index, prompt, len(prompt), length, Sampling(), sample_seed(0, index)))
    tokens = 0
    while engine.pending:
        tokens += sum(len(segment) for segment in engine.step())
    return tokens


def decode_with_generate(model: PreTrainedModel, work: Work, batch: int, cache: str) -> int:
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
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            min_new_tokens=max(lengths),  # EOS off
            max_new_tokens=max(lengths),
            cache_implementation=cache,
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
