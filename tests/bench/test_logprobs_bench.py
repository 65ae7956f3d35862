"""The benchmark compares equal results, and measures what it says."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import pytest
import torch

from ulorl.bench.logprobs_bench import inputs, naive, ours, peak_bytes, recomputed, run, trl_method

pytestmark = pytest.mark.slow


def test_both_compute_the_same() -> None:
    found = []
    for method in (ours, recomputed, naive):
        hidden_NH, weight_VH, targets_N = inputs(20, 301, 16)
        logprobs_N, entropy_N = method(hidden_NH, weight_VH, targets_N)
        logprobs_N.sum().backward()
        found.append([logprobs_N, entropy_N, hidden_NH.grad, weight_VH.grad])
    for one, again, other in zip(*found, strict=True):
        torch.testing.assert_close(again, one)
        torch.testing.assert_close(one, other, atol=1e-5 * other.abs().max().item(), rtol=0)


def test_trls_method_computes_the_same() -> None:
    pytest.importorskip("trl", reason="the peer is TRL (extra trl)")
    found = []
    for method in (ours, trl_method()):
        hidden_NH, weight_VH, targets_N = inputs(20, 301, 16)
        logprobs_N, entropy_N = method(hidden_NH, weight_VH, targets_N)
        logprobs_N.sum().backward()
        found.append([logprobs_N, entropy_N.detach(), hidden_NH.grad, weight_VH.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * other.abs().max().item(), rtol=0)


def test_the_naive_peak_is_whole_logits() -> None:
    """512 x 40,000 logits are 82 MB: log-softmax, exp and their product in the forward pass make three of them."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_process:
        peak = new_process.submit(peak_bytes, "naive", 512, 40_000, 8, 1).result()
    assert peak / (512 * 40_000 * 4) == pytest.approx(3, abs=0.5)


def test_ratios_are_those_of_the_figures() -> None:
    figures = run(tokens=4096, naive_tokens=512, timed_tokens=16, vocabulary=20_000, hidden=16, repeats=3)
    memory, seconds = figures["memory"], figures["time"]["seconds"]
    assert figures["peak_memory_ratio"] == pytest.approx(memory["peak_bytes"] / memory["naive_peak_bytes"], rel=1e-2)
    assert figures["peak_memory_ratio"] < 0.1  # a tile is 1,048,576 of 81,920,000 logits
    assert [len(seconds[who]) for who in ("ulorl", "recomputed", "naive")] == [3, 3, 3]
    recomputed_ratio = median(seconds["recomputed"]) / median(seconds["naive"])
    assert figures["recomputed_time_ratio"] == pytest.approx(recomputed_ratio, rel=0.05)
    assert figures["capability"].startswith(torch.backends.cpu.get_cpu_capability())
    assert memory["peak_bytes_from"] == "measured at 4,096 tokens"
    assert figures["time_ratio"] == pytest.approx(median(seconds["ulorl"]) / median(seconds["naive"]), rel=0.05)
