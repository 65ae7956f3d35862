"""Compares log-probs and entropies from hidden states with the naive computation on whole logits, in both passes.

Memory: `token_logprobs` runs on 8,192 tokens (`--memory-tokens 32768`: on all) and the naive computation, which needs 2
GB a thousand tokens, on 256, each in a process of its own. Both peaks are multiplied up; that overstates ours, of which
only a part grows with tokens. Both at a small hidden size, as [tokens x vocabulary] has none; what a larger one adds to
both is computed.
Time: on a quarter of the vocabulary, runs interleaved in this process, after a warm-up. Ours keeps logits where they
are few and recomputes them where they are many; both are timed, on the same inputs.

Equal: float32, inputs, temperature, gradients of hidden states and weight, threads; both give log-probs and entropies,
the latter without gradient. Not equal: ours multiplies through oneDNN where that pays; the naive computation multiplies
as torch does, through MKL on x86.
"""

# Shapes: N tokens, V vocabulary, H hidden.

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ulorl.bench.machine_facts import facts
from ulorl.bench.peak_memory import peak_rss
from ulorl.learner import logprobs
from ulorl.learner.logprobs import token_logprobs
from ulorl.models.head import Head

VOCABULARY = 151_936  # Qwen3's; 1,024 is the hidden size of its 0.6B
TEMPERATURE = 0.85
TRL_WORDS = 32_768  # of a tile of TRL 1.16's fused head (trl.trainer.utils)
Method = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def run(
    *,
    tokens: int = 32_768,
    memory_tokens: int = 8192,
    naive_tokens: int = 256,
    timed_tokens: int = 128,
    vocabulary: int = VOCABULARY,
    hidden: int = 1024,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure `peak_memory_ratio` at `tokens`, and `time_ratio` and `recomputed_time_ratio` at `timed_tokens`: ours
    over naive, in float32 with torch's threads.

    memory_tokens, naive_tokens: the tokens at which both peaks are measured.
    """
    about = facts()
    # First, while this process is small: a child may start with its parent's peak.
    memory = _memory(tokens, min(tokens, memory_tokens), naive_tokens, vocabulary, hidden)
    words = max(1, vocabulary // 4)
    wall, cpu = _interleaved(timed_tokens, words, hidden, repeats)
    return {
        "benchmark": "logprobs",
        **about,
        "dtype": "float32",
        "temperature": TEMPERATURE,
        "vocabulary": vocabulary,
        "peak_memory_ratio": memory.pop("ratio"),
        "time_ratio": _ratio(wall, "ulorl"),
        "recomputed_time_ratio": _ratio(wall, "recomputed"),
        "memory": memory,
        "time": {
            "tokens": timed_tokens,
            "words": words,
            "hidden": hidden,
            "repeats": repeats,
            "median_seconds": {who: round(median(runs), 6) for who, runs in wall.items()},
            "best_time_ratio": round(min(wall["ulorl"]) / min(wall["naive"]), 3),  # least disturbed runs
            "cpu_time_ratio": _ratio(cpu, "ulorl"),
            "recomputed_cpu_time_ratio": _ratio(cpu, "recomputed"),
            "seconds": {who: [round(s, 6) for s in runs] for who, runs in wall.items()},
            "cpu_seconds": {who: [round(s, 6) for s in runs] for who, runs in cpu.items()},
        },
    }


def _ratio(seconds: dict[str, list[float]], who: str) -> float:
    return round(median(seconds[who]) / median(seconds["naive"]), 3)


def naive(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log-probs and entropies on whole logits with as little memory as possible: temperature in place,
    entropy without a graph."""
    logprobs_NV = torch.log_softmax((hidden_NH @ weight_VH.T).div_(TEMPERATURE), dim=-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N


def ours(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log-probs and entropies as the learner does, which keeps logits where they are few."""
    return token_logprobs(hidden_NH, Head(weight_VH), targets_N, TEMPERATURE)


def recomputed(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Compute log-probs and entropies as the learner does for many tokens, which recomputes logits."""
    with patch.object(logprobs, "KEPT", 0):
        return ours(hidden_NH, weight_VH, targets_N)


def trl_method() -> Method:
    """Return the log-probs and entropies of TRL's fused head, with which its GRPOTrainer trains (TRL 1.16)."""
    from trl.kernels import ChunkedLogProbFunction

    def trl(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        outputs = ("log_probs", "entropy")
        arguments = (hidden_NH, weight_VH, None, targets_N, TEMPERATURE, TRL_WORDS, None, 1.0, outputs)
        logprobs_N, entropy_N, *_ = ChunkedLogProbFunction.apply(*arguments)
        return logprobs_N, entropy_N

    return trl


METHODS: dict[str, Method] = {"ulorl": ours, "recomputed": recomputed, "naive": naive}


def inputs(tokens: int, vocabulary: int, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, weight and targets; logits have a standard deviation of 3."""
    rng = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(tokens, hidden, generator=rng).requires_grad_()
    weight_VH = torch.randn(vocabulary, hidden, generator=rng).mul_(3 / hidden**0.5).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(vocabulary, (tokens,), generator=rng)


def peak_bytes(method: str, tokens: int, vocabulary: int, hidden: int, threads: int) -> int:
    """Return the memory that a forward and a backward pass add to their inputs at their peak; call it in a new
    process. method: one of METHODS, or `trl`, which TRL has to be installed for."""
    torch.set_num_threads(threads)
    compute = trl_method() if method == "trl" else METHODS[method]  # first: importing TRL takes memory
    hidden_NH, weight_VH, targets_N = inputs(tokens, vocabulary, hidden)
    before = peak_rss()
    torch.autograd.backward(compute(hidden_NH, weight_VH, targets_N)[0].sum())
    return peak_rss() - before


def _memory(
    tokens: int, own_tokens: int, naive_tokens: int, vocabulary: int, hidden: int, measured_hidden: int = 8
) -> dict[str, Any]:
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as new_process:
        own_peak = new_process.submit(
            peak_bytes, "recomputed", own_tokens, vocabulary, measured_hidden, threads
        ).result()
        naive_peak = new_process.submit(
            peak_bytes, "naive", naive_tokens, vocabulary, measured_hidden, threads
        ).result()
    peak, peak_from = _full(own_peak, own_tokens, tokens)
    naive_full, naive_from = _full(naive_peak, naive_tokens, tokens)
    # hidden states, their gradient and (ours) its sum before the last rounding; the weight and its gradient
    added = 4 * (hidden - measured_hidden)
    with_inputs = {
        "ulorl": peak + 4 * measured_hidden * (tokens + vocabulary) + added * (3 * tokens + 2 * vocabulary),
        "naive": naive_full + 4 * measured_hidden * (tokens + vocabulary) + added * (2 * tokens + 2 * vocabulary),
    }
    return {
        "ratio": round(peak / naive_full, 5),
        "tokens": tokens,
        "hidden": measured_hidden,
        "peak_bytes": int(peak),
        "peak_bytes_from": peak_from,
        "naive_peak_bytes": int(naive_full),
        "naive_peak_bytes_from": naive_from,
        "naive_bytes_a_logit": round(naive_peak / naive_tokens / vocabulary, 2),
        f"ratio_at_hidden_{hidden}_with_inputs": round(with_inputs["ulorl"] / with_inputs["naive"], 5),
        "ratio_with_inputs_from": "computed: hidden states, weight and their gradients added to both",
    }


def _full(peak: int, measured_tokens: int, tokens: int) -> tuple[float, str]:
    """The peak at `tokens`, and where it comes from."""
    if measured_tokens == tokens:
        return peak, f"measured at {tokens:,} tokens"
    times = tokens / measured_tokens
    return peak * times, f"computed: {times:g} x {peak:,} bytes, measured at {measured_tokens:,} tokens"


def _interleaved(tokens: int, vocabulary: int, hidden: int, repeats: int) -> tuple[dict[str, list[float]], ...]:
    """Wall and CPU seconds of each run."""
    wall: dict[str, list[float]] = {name: [] for name in METHODS}
    cpu: dict[str, list[float]] = {name: [] for name in METHODS}
    for method in METHODS.values():
        torch.autograd.backward(method(*inputs(tokens, max(1, vocabulary // 16), hidden))[0].sum())
    hidden_NH, weight_VH, targets_N = inputs(tokens, vocabulary, hidden)
    for _ in range(repeats):
        for name, method in METHODS.items():
            hidden_NH.grad = weight_VH.grad = None
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            torch.autograd.backward(method(hidden_NH, weight_VH, targets_N)[0].sum())
            wall[name].append(time.perf_counter() - wall_start)
            cpu[name].append(time.process_time() - cpu_start)
    return wall, cpu
