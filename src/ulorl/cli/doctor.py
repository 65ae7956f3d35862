"""`ulorl doctor`: what a report of a fault should say of the installation and the machine.

It fails for nothing that is missing: the reason stands for a fact that cannot be found. Of the extras it reads
the metadata and imports nothing; of the packages it imports torch alone. It shows no path, and of the environment the
names of the variables that limit the processor, never a value.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ulorl import __version__
from ulorl.bench.machine_facts import LIMITS, kernel_features
from ulorl.common.processor import processor

GB = 10**9
_CONTAINER_MEMORY = Path("/sys/fs/cgroup/memory.max")
_DRIVER = Path("/proc/driver/nvidia/gpus")  # a folder for each card that the driver of NVIDIA knows


def examine() -> dict[str, Any]:
    """Return the facts as plain values. Sizes are in bytes; what is missing has the command that installs it."""
    return {
        "ulorl": {"version": __version__, "installed": _tried(_installation)},
        "python": platform.python_version(),
        "platform": _tried(platform.platform),
        "processor": _tried(processor),
        "capability": _tried(kernel_features),
        "limited_by": [name for name in LIMITS if name in os.environ],
        "cores": _tried(_cores),
        "memory": _tried(_memory),
        "gpus": _tried(_gpus),
        "disk_free": _tried(lambda: shutil.disk_usage(Path.cwd()).free),
        "packages": _tried(lambda: _requirements("")),
        "extras": _tried(_extras),
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """Return the facts as a fenced block of Markdown, to paste into an issue."""
    own, limits = facts["ulorl"], ", ".join(facts["limited_by"])
    rows = [
        ("ulorl", f"{own['version']}, {_shown(own['installed'])}"),
        ("python", f"{facts['python']} on {_shown(facts['platform'])}"),
        ("processor", f"{_shown(facts['processor'])}, {_shown(facts['cores'])} cores for this process"),
        ("kernels", _shown(facts["capability"]) + (f", limited by {limits}" if limits else "")),
        ("memory", _shown(facts["memory"], _memory_text)),
        ("GPUs", _shown(facts["gpus"], _gpus_text)),
        ("free disk", _shown(facts["disk_free"], lambda free: f"{free / GB:.1f} GB in the current folder")),
        ("packages", _shown(facts["packages"], _packages_text)),
    ]
    extras = facts["extras"]
    if "unknown" in extras:
        rows.append(("extras", _shown(extras)))
    else:
        rows += [(f"[{name}]", _extra_text(extra)) for name, extra in extras.items()]
    return "\n".join(["```", *(f"{name:11} {text}" for name, text in rows), "```"])


def as_json(facts: Mapping[str, Any]) -> str:
    """Return the facts as JSON."""
    return json.dumps(facts, indent=2)


def _tried(find: Callable[[], Any]) -> Any:
    """Return a fact; where finding it fails, whatever the reason, a table with the reason as `unknown`."""
    try:
        return find()
    except Exception as error:
        return {"unknown": type(error).__name__ + (f" of {error.name}" if isinstance(error, ImportError) else "")}


def _shown(fact: Any, show: Callable[[Any], str] = str) -> str:
    return f"unknown ({fact['unknown']})" if isinstance(fact, dict) and "unknown" in fact else show(fact)


def _installation() -> str:
    """Return how the package was installed."""
    origin = importlib.metadata.distribution("ulorl").read_text("direct_url.json")
    about = json.loads(origin) if origin else {}
    return "editable" if about.get("dir_info", {}).get("editable") else "from a wheel"


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> dict[str, int]:
    """Return the machine's memory, what is available of it, and the limit of a container that has one."""
    page = os.sysconf("SC_PAGE_SIZE")
    found = {"total": page * os.sysconf("SC_PHYS_PAGES")}
    info = Path("/proc/meminfo")
    for line in info.read_text(encoding="utf-8").splitlines() if info.exists() else []:
        if line.startswith("MemAvailable:"):
            found["available"] = 1024 * int(line.split()[1])
    limit = _CONTAINER_MEMORY.read_text(encoding="utf-8").strip() if _CONTAINER_MEMORY.exists() else ""
    return found | ({"container_limit": int(limit)} if limit.isdigit() else {})


def _memory_text(memory: Mapping[str, int]) -> str:
    names = {"total": "", "available": " available", "container_limit": " limit of the container"}
    return ", ".join(f"{size / GB:.1f} GB{names[name]}" for name, size in memory.items())


def _gpus() -> dict[str, Any]:
    """Return what torch sees, the toolkit that it was built for (None: none), and how many cards the driver knows."""
    import torch

    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "cards": [{"name": card.name, "memory": card.total_memory} for card in cards],
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
        "of_the_driver": len(list(_DRIVER.iterdir())) if _DRIVER.is_dir() else 0,
    }


def _gpus_text(gpus: Mapping[str, Any]) -> str:
    built = next((f"{kind} {gpus[kind]}" for kind in ("cuda", "hip") if gpus[kind]), "neither CUDA nor HIP")
    cards = ", ".join(f"{card['name']} {card['memory'] / GB:.0f} GB" for card in gpus["cards"])
    text = f"{cards or ('Apple MPS' if gpus['mps'] else 'none')}; torch is built for {built}"
    if gpus["of_the_driver"] > len(gpus["cards"]):
        text += f"; the driver of NVIDIA knows {gpus['of_the_driver']}, torch sees {len(gpus['cards'])}"
    return text


def _extras() -> dict[str, Any]:
    """Return the packages of every extra, and the command that installs an extra that is not complete."""
    found = {}
    for name in importlib.metadata.metadata("ulorl").get_all("Provides-Extra") or []:
        needed = _requirements(name)
        complete = all(one["problem"] == "" for one in needed.values())
        found[name] = {"complete": complete, "packages": needed}
        if not complete:
            found[name]["install"] = f'pip install "ulorl[{name}]"'
    return found


def _extra_text(extra: Mapping[str, Any]) -> str:
    return _packages_text(extra["packages"]) + (f"; {extra['install']}" if "install" in extra else "")


def _requirements(extra: str) -> dict[str, dict[str, str | None]]:
    """Return the version of each package that an extra, or without one the package itself, needs; None: not installed.

    problem: "" for a package that is there in a version that is supported, else what is wrong.
    """
    from packaging.requirements import Requirement

    found = {}
    for one in map(Requirement, importlib.metadata.requires("ulorl") or []):
        of_extra = one.marker is not None and "extra" in str(one.marker)
        if of_extra != bool(extra) or (one.marker and not one.marker.evaluate({"extra": extra})):
            continue
        version = _version(one.name)
        wrong = version is not None and not one.specifier.contains(version, prereleases=True)
        problem = "missing" if version is None else f"needs {one.specifier}" if wrong else ""
        found[one.name] = {"version": version, "problem": problem}
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages_text(packages: Mapping[str, Mapping[str, str | None]]) -> str:
    return ", ".join(
        f"{name} {one['version'] or ''}".strip() + (f" ({one['problem']})" if one["problem"] else "")
        for name, one in packages.items()
    )
