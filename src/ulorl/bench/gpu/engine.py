"""The embedded engine on the device: greedy tokens and log-probs beside transformers' `generate`, and draws.

Shapes: B rows, T tokens of an output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.bench.gpu.case import Case, Figures, Setting, metered, require
from ulorl.bench.gpu.models import random_model
from ulorl.engines.decode import rollout
from ulorl.engines.torch.sampling import draw
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.models.attention import set_attention
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.training.weight_check import TOLERANCE
from ulorl.types import Request, Sampling, Segment, Tokens

# Two tokens whose log-probs differ by less than this many nats are a tie, which rounding decides.
TIE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
Maker = Callable[[torch.dtype], PreTrainedModel]


def cases(setting: Setting) -> list[Case]:
    """Return the cases: two models in two dtypes, both attention kernels, sampled draws."""

    def tiny(dtype: torch.dtype) -> PreTrainedModel:
        return load_model(ModelSource(TINY), dtype=dtype, device=setting.device)

    def large(dtype: torch.dtype) -> PreTrainedModel:
        name = "small" if setting.small else "Qwen3-0.6B"
        return random_model(name, dtype=dtype, device=setting.device, positions=4096)

    rows, tokens = (6, 8) if setting.small else (24, 64)
    many, longer = (6, 8) if setting.small else (96, 128)
    return [
        Case("the tiny reasoner, float32, sdpa", partial(_parity, setting, tiny, torch.float32, rows, tokens)),
        Case("0.6B, bfloat16, sdpa", partial(_parity, setting, large, torch.bfloat16, many, longer)),
        Case("0.6B, float32, sdpa", partial(_parity, setting, large, torch.float32, rows, tokens)),
        Case("the tiny reasoner, bfloat16, sdpa", partial(_parity, setting, tiny, torch.bfloat16, rows, tokens)),
        Case("0.6B, float32, eager", partial(_parity, setting, large, torch.float32, rows, tokens, attention="eager")),
        Case("draws are those of a CPU", partial(_draws, setting)),
    ]


def _parity(
    setting: Setting, make: Maker, dtype: torch.dtype, rows: int, tokens: int, attention: str = "sdpa"
) -> Figures:
    """Decode greedily with `generate` and with the engine, and compare tokens and log-probs."""
    model = make(dtype)
    set_attention(model, attention)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    rng = np.random.default_rng(0)
    # three lengths of prompts: `generate` gets each length alone, without padding, the engine all of them together
    prompts = [rng.integers(2, vocabulary, 5 + 9 * (row % 3)).astype(np.int32) for row in range(rows)]
    with metered(setting) as theirs:
        expected = _generate(model, prompts, tokens)
    engine = TorchEngine(model, eos_ids=[], slots=rows, prefill_tokens=64)
    with metered(setting) as warm_up:  # kernels are chosen and loaded at their first use
        found = _decode(engine, prompts, tokens)
    with metered(setting) as ours:
        found = _decode(engine, prompts, tokens)
    return _compare(model, prompts, found, expected, dtype) | {
        "parameters": model.num_parameters(),
        "rows": rows,
        "tokens": tokens,
        "tokens_per_second": round(rows * tokens / ours.seconds),
        "generate_tokens_per_second": round(rows * tokens / theirs.seconds),  # the first use of its kernels included
        "warm_up_seconds": warm_up.seconds,
        "peak_bytes": ours.peak_bytes,
    }


def _generate(model: PreTrainedModel, prompts: list[Tokens], tokens: int) -> list[Tokens]:
    outputs: list[Tokens] = [np.empty(0, np.int32)] * len(prompts)
    for first in range(3):
        same = list(range(first, len(prompts), 3))
        ids = torch.from_numpy(np.stack([prompts[i] for i in same])).long().to(model.device)
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None,
            pad_token_id=0, top_k=None, top_p=None, temperature=None,
        )  # fmt: skip
        for i, row in zip(same, found[:, ids.shape[1] :].cpu().numpy().astype(np.int32), strict=True):
            outputs[i] = row
    return outputs


def _decode(engine: TorchEngine, prompts: list[Tokens], tokens: int) -> list[Segment]:
    greedy = Sampling(temperature=0.0)
    requests = [Request(i, prompt, tokens, greedy, seed=i) for i, prompt in enumerate(prompts)]
    return sorted(rollout(engine, requests), key=lambda segment: segment.sample_id)


@torch.no_grad()
def _compare(
    model: PreTrainedModel, prompts: list[Tokens], found: list[Segment], expected: list[Tokens], dtype: torch.dtype
) -> Figures:
    """Compare log-probs with the model's own forward pass, and tokens with `generate`: they may differ at ties only."""
    apart, gaps = [], []
    for prompt, segment, tokens in zip(prompts, found, expected, strict=True):
        logprobs_TV = _forward(model, prompt, segment.tokens)
        own_T = logprobs_TV.gather(1, torch.from_numpy(segment.tokens).long()[:, None]).squeeze(1).numpy()
        apart.append(np.abs(own_T - segment.logprobs))
        if different := np.flatnonzero(segment.tokens != tokens).tolist():
            at = different[0]
            pair = logprobs_TV[at, [int(segment.tokens[at]), int(tokens[at])]]
            gaps.append(float((pair[0] - pair[1]).abs()))
    figures: Figures = {
        "rows_with_the_tokens_of_generate": round(1 - len(gaps) / len(prompts), 4),
        "largest_gap_where_tokens_differ": max(gaps, default=0.0),
        "logprob_difference_mean": float(np.concatenate(apart).mean()),
        "logprob_difference_max": float(np.concatenate(apart).max()),
    }
    limit = TOLERANCE[str(dtype).removeprefix("torch.")]
    require(figures["logprob_difference_mean"] <= limit, f"log-probs differ by more than {limit} nats", figures)
    require(max(gaps, default=0.0) <= TIE[dtype], "tokens differ from generate's where there is no tie", figures)
    return figures


def _forward(model: PreTrainedModel, prompt: Tokens, output: Tokens) -> Tensor:
    """Return the log-probs before each output token from one pass over the whole row, [T, V] on the CPU."""
    ids = torch.from_numpy(np.concatenate([prompt, output])).long()[None].to(model.device)
    logits_TV: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits_TV.float().log_softmax(-1).cpu()


def _draws(setting: Setting) -> Figures:
    """Draw from the same logits with the same uniform numbers on the device and on a CPU."""
    rows, vocabulary = (64, 199) if setting.small else (512, 151_936)
    rng = np.random.default_rng(0)
    logits_BV = torch.from_numpy(rng.normal(0, 3, (rows, vocabulary)).astype(np.float32))
    settings = (
        rng.random(rows),
        rng.choice([0.0, 0.85, 1.0], rows),
        rng.choice([0.9, 1.0], rows),
        rng.choice([0, 20], rows),
    )
    expected, expected_logprobs = draw(logits_BV, *settings)
    with metered(setting) as meter:
        found, logprobs = draw(logits_BV.to(setting.device), *settings)
    figures: Figures = {
        "rows": rows,
        "same": round(float((found == expected).mean()), 5),
        "logprob_difference_max": float(np.abs(logprobs - expected_logprobs)[found == expected].max()),
        "seconds": meter.seconds,
        "peak_bytes": meter.peak_bytes,
    }
    # exp is rounded differently: a uniform number may lie between the two borders of a token
    require(figures["same"] >= 0.99, "draws differ from a CPU's", figures)
    require(figures["logprob_difference_max"] <= 1e-4, "log-probs of draws differ from a CPU's", figures)
    return figures
