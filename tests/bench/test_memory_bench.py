"""The memory plan against a learner of two processes, in its smallest form, and the counter of tensors' bytes."""

from __future__ import annotations

import threading

import pytest
import torch

from ulorl.bench import memory_bench
from ulorl.bench.memory_bench import Shape, compare
from ulorl.bench.tensor_bytes import count_tensor_bytes, peak_tensor_bytes

MB = 10**6
pytestmark = pytest.mark.slow


def test_a_peak_knows_what_other_threads_free() -> None:
    count_tensor_bytes()

    def work() -> None:
        for _ in range(3):
            tensors = [torch.empty(10 * MB, dtype=torch.uint8)]
            thread = threading.Thread(target=tensors.clear)
            thread.start()
            thread.join()

    before = peak_tensor_bytes(lambda: torch.empty(1, dtype=torch.uint8))
    assert 10 * MB <= peak_tensor_bytes(work) - before < 11 * MB


def test_the_plan_is_close_to_the_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bench, "LIMIT", 120)
    shape = Shape("smallest", 512, sequence=2, autocast=True, updates=1, sizes={"num_hidden_layers": 2})
    figures = compare(shape)
    assert figures["smallest_measured_bytes"] > figures["state_bytes"]
    assert 0.9 < figures["planned_to_measured"] < 1.1
