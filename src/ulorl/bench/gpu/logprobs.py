"""The log-prob kernel on the device: values and gradients, memory and time beside whole logits.

Shapes: N tokens, V vocabulary, H hidden.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ulorl.bench.gpu.case import Case, Figures, Setting, metered, require
from ulorl.bench.logprobs_bench import METHODS, TEMPERATURE, naive, ours

# Largest differences of log-probs and entropies in nats, and of gradients relative to the largest entry: bfloat16
# gradients are rounded to 8 bits before they are multiplied.
LIMITS = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (2e-3, 2e-2)}


def cases(setting: Setting) -> list[Case]:
    """Return the cases: exactness in two dtypes, and the size of an update on long samples."""
    return [
        Case("values and gradients, bfloat16", partial(_exact, setting, torch.bfloat16)),
        Case("values and gradients, float32", partial(_exact, setting, torch.float32)),
        Case("32,768 tokens x 151,936 words, bfloat16", partial(_large, setting)),
    ]


def _inputs(setting: Setting, dtype: torch.dtype, tokens: int, vocabulary: int, hidden: int) -> tuple[Tensor, ...]:
    """Return hidden states, weight and targets; logits have a standard deviation of 3."""
    rng = torch.Generator(setting.device).manual_seed(0)
    options: dict[str, Any] = {"generator": rng, "device": setting.device, "dtype": dtype}
    hidden_NH = torch.randn(tokens, hidden, **options).requires_grad_()
    weight_VH = torch.randn(vocabulary, hidden, **options).mul_(3 / hidden**0.5).requires_grad_()
    return hidden_NH, weight_VH, torch.randint(vocabulary, (tokens,), generator=rng, device=setting.device)


def _exact(setting: Setting, dtype: torch.dtype) -> Figures:
    """Compare with the naive computation in float64 on the same inputs; a third of the tokens have no gradient."""
    tokens, vocabulary, hidden = (50, 300, 16) if setting.small else (700, 9000, 256)
    hidden_NH, weight_VH, targets_N = _inputs(setting, dtype, tokens, vocabulary, hidden)
    share_N = torch.linspace(-1, 1, tokens, device=setting.device).where(targets_N % 3 > 0, 0)
    exact_NH, exact_VH = (t.detach().double().requires_grad_() for t in (hidden_NH, weight_VH))
    expected_N, expected_entropy_N = naive(exact_NH, exact_VH, targets_N)
    (expected_N * share_N).sum().backward()  # type: ignore[no-untyped-call]
    figures: Figures = {}
    for name in ("ulorl", "recomputed"):
        hidden_NH.grad = weight_VH.grad = None
        logprobs_N, entropy_N = METHODS[name](hidden_NH, weight_VH, targets_N)
        (logprobs_N * share_N).sum().backward()  # type: ignore[no-untyped-call]
        figures[name] = {
            "logprobs": _apart(logprobs_N, expected_N),
            "entropy": _apart(entropy_N, expected_entropy_N),
            "gradient_of_hidden": _apart(hidden_NH.grad, exact_NH.grad, relative=True),
            "gradient_of_weight": _apart(weight_VH.grad, exact_VH.grad, relative=True),
        }
    values, gradients = LIMITS[dtype]
    for name, found in figures.items():
        for what, apart in found.items():
            limit = gradients if what.startswith("gradient") else values
            require(apart <= limit, f"{name}: {what} differs by {apart:.2g}, more than {limit}", figures)
    return figures


def _apart(found: Tensor | None, expected: Tensor | None, *, relative: bool = False) -> float:
    assert found is not None
    assert expected is not None
    apart = (found.detach().double() - expected.detach()).abs().max()
    return float(apart / expected.detach().abs().max()) if relative else float(apart)


def _large(setting: Setting) -> Figures:
    """Measure forward and backward pass, and the naive computation at the most tokens that it fits at."""
    tokens, vocabulary, hidden = (64, 512, 16) if setting.small else (32_768, 151_936, 2560)
    figures: Figures = {
        "tokens": tokens, "vocabulary": vocabulary, "hidden": hidden, "temperature": TEMPERATURE, "dtype": "bfloat16",
    }  # fmt: skip
    figures["ulorl"] = _pass(setting, "ulorl", tokens, vocabulary, hidden)
    for fewer in (tokens, tokens // 2, tokens // 4, tokens // 8):
        beside = _pass_if_it_fits(setting, "naive", fewer, vocabulary, hidden)
        if beside is None:
            figures.setdefault("naive_out_of_memory_at", []).append(fewer)
            continue
        own = figures["ulorl"] if fewer == tokens else _pass(setting, "ulorl", fewer, vocabulary, hidden)
        figures["beside_naive"] = {
            "tokens": fewer,
            "naive": beside,
            "ulorl": own,
            "time_ratio": round(own["seconds"] / beside["seconds"], 3),
            "memory_ratio": round(own["added_bytes"] / beside["added_bytes"], 4) if own["added_bytes"] else None,
        }
        break
    if setting.on_gpu:
        limit = tokens * vocabulary  # bytes: an eighth of what the naive computation keeps in float32 twice
        require(figures["ulorl"]["added_bytes"] < limit, f"the kernel takes more than {limit} bytes", figures)
    return figures


def _pass_if_it_fits(setting: Setting, name: str, tokens: int, vocabulary: int, hidden: int) -> Figures | None:
    """Return what `_pass` returns, or None when the GPU's memory is too small."""
    with suppress(torch.OutOfMemoryError):
        return _pass(setting, name, tokens, vocabulary, hidden)
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _pass(setting: Setting, name: str, tokens: int, vocabulary: int, hidden: int) -> Figures:
    """Seconds of a forward and backward pass after a first one, and the memory that it adds to its inputs."""
    hidden_NH, weight_VH, targets_N = _inputs(setting, torch.bfloat16, tokens, vocabulary, hidden)
    method = ours if name == "ulorl" else _naive_in_float32
    before = torch.cuda.memory_allocated() if setting.on_gpu else 0
    for _ in range(2):
        hidden_NH.grad = weight_VH.grad = None
        with metered(setting) as meter:
            method(hidden_NH, weight_VH, targets_N)[0].sum().backward()  # type: ignore[no-untyped-call]
    added = None if meter.peak_bytes is None else meter.peak_bytes - before
    return {"seconds": meter.seconds, "added_bytes": added}


def _naive_in_float32(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The usual computation: logits from a bfloat16 product, the rest in float32."""
    logits_NV = (hidden_NH @ weight_VH.T).float().div_(TEMPERATURE)
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
    return logprobs_NV.gather(1, targets_N[:, None]).squeeze(1), entropy_N
