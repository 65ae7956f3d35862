"""The helper that runs a function in several processes."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from processes import run_processes

pytestmark = pytest.mark.slow


def summed(number: int) -> tuple[int, Tensor]:
    total = torch.tensor([number * (dist.get_rank() + 1)])
    dist.all_reduce(total)
    return dist.get_rank(), total


def one_fails(rank: int) -> None:
    if dist.get_rank() == rank:
        raise KeyError("broken")
    dist.barrier()


def one_dies(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def hangs() -> None:
    time.sleep(60)


def test_results_by_rank() -> None:
    (first, total), (second, _) = run_processes(summed, 2, 5)
    assert (first, second, total.tolist()) == (0, 1, [15])


def test_failures_end_all_processes() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 1 failed:.*KeyError: 'broken'"):
        run_processes(one_fails, 2, 1, timeout=30)
    with pytest.raises(AssertionError, match="rank 0 ended with exit code -9"):
        run_processes(one_dies, 2, 0, timeout=30)
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\] ran past the time limit"):
        run_processes(hangs, 2, timeout=3)
