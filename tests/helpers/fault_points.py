"""Faults at chosen points inside the actors of a Ray cluster: SIGKILL or SIGSTOP, which a process sends to itself.

`install` runs in every worker process of the cluster, so that an actor wraps the functions below. A test plans one
fault at a time in a file; the first process that enters the point takes the file and sends itself the signal.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = "ULORL_FAULT_POINTS"  # the variable that names the folder of the plan
POINTS = {
    "segment": ("ulorl.engines.torch.torch_engine", "TorchEngine.step"),
    "load": ("ulorl.engines.torch.torch_engine", "TorchEngine.load_weights"),
    "forward": ("ulorl.learner.policy", "Policy.forward"),
    "backward": ("torch", "Tensor.backward"),
    "optimizer step": ("ulorl.learner.optimizer", "Optimizer.step"),
    "checkpoint": ("ulorl.learner.policy_learner", "PolicyLearner.save"),
    "transfer": ("ulorl.learner.policy_learner", "PolicyLearner.publish"),
}
ENGINE = ("segment", "load")


@dataclass(frozen=True)
class Fault:
    """A signal `delay` seconds after a process enters `point` for the time after the next `skip` ones."""

    point: str
    signal: int
    skip: int = 0
    delay: float = 0.0


@contextmanager
def cluster(folder: Path, gpus: int = 0) -> Iterator[None]:
    """A local cluster whose processes meet the faults that are planned in `folder`. gpus: that it claims to have."""
    from ulorl.backends.ray.ray_preflight import set_environment
    from ulorl.config.backend_config import RayBackendConfig

    set_environment(RayBackendConfig())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        helpers = str(Path(__file__).parent)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [helpers, os.environ.get("PYTHONPATH")])))
        import ray

        ray.init(
            address="local", include_dashboard=False, num_cpus=16, num_gpus=gpus, log_to_driver=False,
            logging_level="ERROR", object_store_memory=200 * 2**20,
            runtime_env={"worker_process_setup_hook": "fault_points.install"},
        )  # fmt: skip
        try:
            yield
        finally:
            ray.shutdown()


def plan(folder: Path, fault: Fault) -> None:
    """Let the next process that enters the point meet a fault."""
    (folder / "partial.json").write_text(json.dumps({**asdict(fault), "id": time.time_ns()}))
    (folder / "partial.json").rename(folder / "plan.json")


def waiting(folder: Path) -> bool:
    """Whether the fault that was planned last has not happened yet."""
    return (folder / "plan.json").exists()


def happened(folder: Path) -> list[tuple[Fault, float]]:
    """The faults that have happened, in their order, and when."""
    found = []
    for path in sorted(folder.glob("done-*.json"), key=lambda path: path.stat().st_ctime_ns):
        values = json.loads(path.read_text())
        del values["id"]
        found.append((Fault(**values), path.stat().st_ctime))
    return found


def install() -> None:
    """Let an actor that begins in this process wrap the functions of `POINTS`. Nothing large is imported before."""
    from ulorl.backends.ray import process_ends

    begin = process_ends.end_with_parent

    def end_with_parent() -> None:
        begin()
        _wrap_all()

    process_ends.end_with_parent = end_with_parent


def _wrap_all() -> None:
    folder = Path(os.environ[FOLDER])
    seen: dict[int, int] = {}
    for point, (module, name) in POINTS.items():
        owner_name, attribute = name.split(".")
        owner: Any = getattr(importlib.import_module(module), owner_name)
        setattr(owner, attribute, _wrapped(getattr(owner, attribute), point, folder, seen))


def _wrapped(function: Callable[..., Any], point: str, folder: Path, seen: dict[int, int]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _meet(point, folder, seen)
        return function(*args, **kwargs)

    return wrapped


def _meet(point: str, folder: Path, seen: dict[int, int]) -> None:
    try:
        fault = json.loads((folder / "plan.json").read_text())
        if fault["point"] != point:
            return
        seen[fault["id"]] = seen.get(fault["id"], 0) + 1
        if seen[fault["id"]] <= fault["skip"]:
            return
        (folder / "plan.json").rename(folder / f"done-{fault['id']}.json")
    except FileNotFoundError:  # there is no plan, or another process met it
        return

    def send() -> None:
        time.sleep(fault["delay"])
        os.kill(os.getpid(), fault["signal"])

    if fault["delay"]:
        threading.Thread(target=send, daemon=True).start()
    else:
        send()


KILL, STOP = int(signal.SIGKILL), int(signal.SIGSTOP)
