"""The memory plan against a learner of two processes, in its smallest form, and the count of tensors' bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ulorl.bench import memory_bench
from ulorl.bench.memory_bench import Shape, compare

pytestmark = pytest.mark.slow
# In a process of its own, because the allocator counts until the process ends.
OTHER_THREAD = """
import threading, torch
from ulorl.bench.tensor_bytes import count_tensor_bytes, peak_tensor_bytes
count_tensor_bytes()
def work():
    for _ in range(3):
        tensors = [torch.empty(10_000_000, dtype=torch.uint8)]
        thread = threading.Thread(target=tensors.clear)
        thread.start()
        thread.join()
print(peak_tensor_bytes(work))
"""


def test_a_peak_knows_what_other_threads_free() -> None:
    done = subprocess.run([sys.executable, "-c", OTHER_THREAD], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) == 10_000_000


def test_the_plan_is_close_to_the_measured_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bench, "LIMIT", 120)  # seconds
    shape = Shape("smallest", 512, sequence=2, autocast=True, updates=1, sizes={"num_hidden_layers": 2})
    figures = compare(shape)
    assert figures["smallest_measured_bytes"] > figures["state_bytes"]
    assert 0.9 < figures["planned_to_measured"] < 1.1
