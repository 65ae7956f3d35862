"""Compares the embedded engine with transformers' `generate` and, where it is installed, vLLM.

Equal: model, float32, prompts, the length that each request decodes (EOS off), temperature 1, threads. Runs are
interleaved after a short one that warms up.

Workloads: in a long-tailed one there are twice as many requests as rows decoded at once, and each request has a length
of its own, at most the stated maximum. `long_tail` is a log-normal whose 90th percentile is 4.3 medians as in
DeepSeek-R1's production traffic; others are named after a file of real lengths, scaled so that its cap is the maximum.
In `equal` every request decodes the maximum, and there are as many requests as rows.

Not equal: `generate` takes the requests in batches that last as long as their longest, and only tokens asked for are
counted; it returns no log-probs, which favours it. The engine multiplies through oneDNN where that pays, `generate` as
torch does. vLLM runs eager and in this process; it starts before the clock. Read ratios to `generate` where
transformers is new: 5.19, which vLLM installs, copies keys and values for grouped queries in every decode step, and
takes several times as long with the static cache; 5.23 does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ulorl.bench.machine_facts import facts, installed
from ulorl.config.engine_config import VllmConfig, VllmEngineConfig
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.planning.output_lengths import log_normal, read_lengths
from ulorl.rng import sample_seed
from ulorl.types import Request, Sampling, Tokens

WARM_UP_TOKENS = 8
PREFILL_TOKENS = 8192
PROMPT = (8, 16)  # tokens, from and to
PEERS = {"generate_static": "transformers_static", "generate_dynamic": "transformers_dynamic", "vllm": "vllm"}


@dataclass(frozen=True)
class Work:
    """Prompts and the number of tokens each decodes."""

    prompts: Sequence[Tokens]
    lengths: Sequence[int]


Contestant = Callable[[Work], int]  # decodes the work and returns the number of tokens asked for


def run(
    model: str = TINY,
    batches: Sequence[int] = (32, 128),
    max_tokens: int = 128,
    *,
    lengths: Sequence[Path] = (),
    equal: bool = False,
    caches: Sequence[str] = ("static",),
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure tokens a second of each, medians of `repeats` interleaved runs, and their ratios, in float32 with torch's
    threads.

    batches: rows decoded at once. lengths: CSV files that take the log-normal's place (`read_lengths`). equal: run the
    workload of equal lengths too. caches: of `generate`, "static" and "dynamic"; without one it takes no part.

    `ratio_to_transformers_static` and `ratio_to_vllm` are the worst of the long-tailed workloads. Raises UserError for
    an unusable model or file of lengths, and for outputs longer than the model's context.
    """
    about = facts("vllm")
    tails = [(file.name, file.draw) for file in map(read_lengths, lengths)] or [("long_tail", log_normal)]
    models = [load_model(ModelSource(model), dtype=torch.float32, device="cpu") for _ in ("ours", "generate's")]
    check_length(model, models[0], max_tokens)
    vocabulary = models[0].config.vocab_size
    results = []
    for batch in batches:
        works = [(name, Work(prompts(2 * batch, vocabulary), draw(2 * batch, max_tokens))) for name, draw in tails]
        if equal:
            works.append(("equal", Work(prompts(batch, vocabulary), [max_tokens] * batch)))
        with _contestants(model, models, batch, max_tokens, caches) as contestants:
            for name, work in works:
                results.append(_result(name, batch, work, interleaved(contestants, work, repeats)))
    return {
        "benchmark": "engine",
        **about,
        "model": model,
        "max_tokens": max_tokens,
        "repeats": repeats,
        **_worst([result for result in results if result["lengths"] != "equal"]),
        "results": results,
    }


def check_length(path: str, model: PreTrainedModel, max_tokens: int) -> None:
    """Refuse outputs that are longer than the model's context. Raises UserError."""
    takes = model.config.max_position_embeddings
    if max_tokens + PROMPT[1] > takes:
        raise UserError(
            f"--tokens {max_tokens}: with prompts of {PROMPT[1]} tokens more than the {takes} positions of {path}; "
            f"give {takes - PROMPT[1]} at most, or another --model",
            code=ErrorCode.BENCH_INPUT,
            key="--tokens",
        )


def _worst(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [f"ratio_to_{peer}" for peer in PEERS.values()]
    return {name: min(r[name] for r in results) for name in names if name in results[0]}


def _result(name: str, batch: int, work: Work, runs: Mapping[str, list[float]]) -> dict[str, Any]:
    rates = {who: sum(work.lengths) / median(seconds) for who, seconds in runs.items()}
    return {
        "lengths": name,
        "batch": batch,
        "requests": len(work.prompts),
        "tokens": sum(work.lengths),
        "seconds": {who: [round(s, 6) for s in seconds] for who, seconds in runs.items()},
        "tokens_per_second": {who: round(rate, 1) for who, rate in rates.items()},
        # least disturbed run: on a shared machine the one to read
        "best_tokens_per_second": {who: round(sum(work.lengths) / min(seconds), 1) for who, seconds in runs.items()},
        **{f"ratio_to_{PEERS[who]}": round(rates["engine"] / rates[who], 2) for who in rates if who in PEERS},
    }


@contextmanager
def _contestants(
    path: str, models: Sequence[PreTrainedModel], batch: int, max_tokens: int, caches: Sequence[str]
) -> Iterator[dict[str, Contestant]]:
    """Yield the contestants. The engine may change its model's layers, so `generate` has another copy of the model.
    vLLM is started here and stopped afterwards."""
    ours, generates = models
    found: dict[str, Contestant] = {"engine": partial(decode_with_engine, ours, batch)}
    for cache in caches:
        found[f"generate_{cache}"] = partial(decode_with_generate, generates, batch, cache)
    if not installed("vllm"):
        yield found
        return
    from ulorl.engines.vllm.vllm_engine import VllmEngine

    spec = EngineSpec(
        engine=VllmEngineConfig(slots=batch, prefill_tokens=PREFILL_TOKENS, vllm=VllmConfig(eager=True)),
        device=torch.device("cpu"),
        sampling=Sampling(),
        longest=max_tokens + PROMPT[1],
    )
    engine = VllmEngine(spec, ModelSource(path), eos_ids=())
    with closing(engine):
        yield found | {"vllm": partial(_decode, engine)}


def prompts(requests: int, vocabulary: int) -> list[Tokens]:
    """Return random prompts of 8 to 16 tokens, from a fixed seed."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(PROMPT[0], PROMPT[1] + 1, requests)
    return [rng.integers(1, vocabulary, size).astype(np.int32) for size in sizes]


def decode_with_engine(model: PreTrainedModel, batch: int, work: Work) -> int:
    """Decode the work with the embedded engine, and return the number of tokens."""
    return _decode(TorchEngine(model, eos_ids=(), slots=batch, prefill_tokens=PREFILL_TOKENS), work)


def _decode(engine: Engine, work: Work) -> int:
    for index, (prompt, length) in enumerate(zip(work.prompts, work.lengths, strict=True)):
        engine.add(Request(index, prompt, length, Sampling(), sample_seed(0, index)))
    tokens = 0
    while engine.pending:
        tokens += sum(len(segment) for segment in engine.step())
    return tokens


def decode_with_generate(model: PreTrainedModel, batch: int, cache: str, work: Work) -> int:
    """Decode the work with `generate`, which needs prompts padded on the left, and return the number of tokens that the
    work asks for."""
    tokens = 0
    for start in range(0, len(work.prompts), batch):
        rows, lengths = work.prompts[start : start + batch], work.lengths[start : start + batch]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(rows):
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


def interleaved(contestants: Mapping[str, Contestant], work: Work, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run, after a warm-up on the same requests with few tokens. Raises RuntimeError when
    the contestants did not decode the same number of tokens."""
    short = replace(work, lengths=[min(length, WARM_UP_TOKENS) for length in work.lengths])
    for contestant in contestants.values():
        contestant(short)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    decoded = set()
    for _ in range(repeats):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            decoded.add(contestant(work))
            seconds[name].append(time.perf_counter() - start)
    if decoded != {sum(work.lengths)}:
        raise RuntimeError(f"the contestants decoded {sorted(decoded)} tokens of {sum(work.lengths)}")
    return seconds
