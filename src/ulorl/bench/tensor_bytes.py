"""Measures the largest sum of the bytes of all tensors on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def count_tensor_bytes() -> None:
    """Let torch's CPU allocator count the bytes of all tensors in all threads, from those that are made after this.

    Its profiler reports the sum. Without this flag of torch's it does not see what another thread frees, as gloo's
    threads free the buffers of collectives; a peak was then up to a third too high, and different each time.
    """
    library = Path(torch.__file__).parent / "lib" / ("libc10.dylib" if sys.platform == "darwin" else "libc10.so")
    ctypes.c_bool.in_dll(ctypes.CDLL(str(library)), "FLAGS_caffe2_report_cpu_memory_usage").value = True


def peak_tensor_bytes(work: Callable[[], object]) -> int:
    """Return the largest sum of the bytes of all counted tensors (`count_tensor_bytes`) while `work` runs.

    The sum is read whenever this thread makes a tensor. What Python and the libraries take is no part of it.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    peak, events = 0, list(results.kineto_results.experimental_event_tree())
    while events:
        event = events.pop()
        events.extend(event.children)
        if event.tag.name == "Allocation":
            peak = max(peak, event.extra_fields.total_allocated)
    return peak
