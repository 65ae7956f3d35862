"""What the machine is, and how fast it multiplies and copies: the figures of the other checks depend on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ulorl.bench.gpu.case import Case, Figures, Setting, metered
from ulorl.bench.machine_facts import facts

PACKAGES = ("safetensors", "tokenizers", "pydantic", "triton", "flash-attn", "kernels", "nvidia-nccl-cu13", "vllm")


def cases(setting: Setting) -> list[Case]:
    """Return the cases: versions and card, and the speed of a product and of a copy."""
    return [Case("versions and card", partial(_machine, setting)), Case("speed", partial(_speed, setting))]


def _machine(setting: Setting) -> Figures:
    about = facts()
    about["versions"] |= {"cuda": torch.version.cuda, "cudnn": _cudnn(), "driver": _driver()}
    about["versions"] |= {name: found for name in PACKAGES if (found := _installed(name))}
    about["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return about | ({"card": _card()} if setting.on_gpu else {})


def _card() -> dict[str, Any]:
    card = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": total,
        "free_bytes": free,
        "count": torch.cuda.device_count(),
        "bfloat16": torch.cuda.is_bf16_supported(),
    }


def _speed(setting: Setting) -> Figures:
    """TFLOP/s of a bfloat16 product and GB/s of a copy on the device, bytes read and written."""
    side, times = (256, 20) if setting.small else (8192, 10)
    a = torch.randn(side, side, device=setting.device, dtype=torch.bfloat16)
    b, copy = torch.randn_like(a), torch.empty_like(a)
    torch.mm(a, b)
    with metered(setting) as product:
        for _ in range(times):
            torch.mm(a, b)
    with metered(setting) as copied:
        for _ in range(times):
            copy.copy_(a)
    return {
        "side": side,
        "product_tflops": round(times * 2 * side**3 / product.seconds / 1e12, 3),
        "copy_gb_per_second": round(times * 2 * a.nbytes / copied.seconds / 1e9, 1),
    }


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cudnn() -> int | None:
    found: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _driver() -> str | None:
    command = shutil.which("nvidia-smi")
    if not command:
        return None
    done = subprocess.run(
        [command, "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
