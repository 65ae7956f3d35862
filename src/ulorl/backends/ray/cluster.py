"""A connection to a Ray cluster, and the places there that a run has reserved for its processes.

One placement group holds everything, so that a run either gets all of its places or none. Its bundles lie each on one
machine: an engine with its GPUs, or a rank of the learner with its GPU. Colocated, a bundle has the GPUs of one engine,
which as many ranks share with it.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ulorl.backends.ray.ray_preflight import unreachable
from ulorl.config.backend_config import RayBackendConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line

RESERVE_SECONDS = 60.0  # another run on the cluster may be ending
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Needs:
    """What the processes of a run need.

    engines, ranks: their numbers. engine_gpus: of each engine; a rank has one GPU. Without `gpus` nothing has one.
    threads: the CPUs of each process.
    """

    engines: int
    ranks: int
    engine_gpus: int = 1
    threads: int = 1
    gpus: bool = False
    colocate: bool = False

    def bundles(self) -> list[dict[str, float]]:
        """Return the resources of each bundle: of the ranks first, or, colocated, of each engine with its ranks."""
        rank, engine = {"CPU": float(self.threads)}, {"CPU": float(self.threads)}
        if self.gpus:
            rank, engine = rank | {"GPU": 1.0}, engine | {"GPU": float(self.engine_gpus)}
        if not self.colocate:
            return [rank] * self.ranks + [engine] * self.engines
        return [engine | {"CPU": float(self.threads * (1 + self.ranks // self.engines))}] * self.engines

    def bundle_of_rank(self, rank: int) -> int:
        """Return the index of the bundle in which a rank of the learner runs."""
        return rank // (self.ranks // self.engines) if self.colocate else rank

    def bundle_of_engine(self, index: int) -> int:
        """Return the index of the bundle in which an engine runs."""
        return index if self.colocate else self.ranks + index


class Places:
    """The places that a run has reserved. `close` gives them back, and ends what runs there.

    Raises UserError when the cluster cannot give them.
    """

    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        _check_size(needs)
        self._group = placement_group(needs.bundles(), strategy="PACK")
        if not self._group.wait(RESERVE_SECONDS):
            remove_placement_group(self._group)
            raise _too_small(needs, "free", ray.available_resources())
        shared = needs.gpus and needs.colocate
        self._visible = [self._gpus_of(i) for i in range(needs.engines)] if shared else [""] * needs.engines

    def rank(self, rank: int) -> dict[str, Any]:
        """Return the options of the actor of a rank of the learner."""
        return self._options(self.needs.bundle_of_rank(rank), gpus=1 if self.needs.gpus else 0)

    def engine(self, index: int) -> dict[str, Any]:
        """Return the options of the actor of an engine."""
        gpus = self.needs.engine_gpus if self.needs.gpus and not self.needs.colocate else 0
        return self._options(self.needs.bundle_of_engine(index), gpus=gpus)

    def visible(self, index: int) -> str:
        """Return CUDA_VISIBLE_DEVICES of an engine whose GPUs Ray has given to ranks of the learner, "" for others."""
        return self._visible[index]

    def rendezvous(self) -> str:
        """Return an address on the machine of rank 0 where the ranks of a process group can meet."""
        task = ray.remote(_free_address).options(**self._options(self.needs.bundle_of_rank(0), actor=False))
        return str(ray.get(task.remote()))

    def close(self) -> None:
        """Give the places back."""
        remove_placement_group(self._group)

    def _options(self, bundle: int, *, gpus: int = 0, actor: bool = True) -> dict[str, Any]:
        where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options = {"num_cpus": self.needs.threads if actor else 0, "num_gpus": gpus, "scheduling_strategy": where}
        # The run decides what happens after a failure; Ray repeats nothing.
        return options | ({"max_restarts": 0, "max_task_retries": 0} if actor else {"max_retries": 0})

    def _gpus_of(self, bundle: int) -> str:
        task = ray.remote(_visible_gpus).options(**self._options(bundle, gpus=self.needs.engine_gpus, actor=False))
        return str(ray.get(task.remote()))


@contextmanager
def connected(settings: RayBackendConfig, *, cpus: int) -> Iterator[None]:
    """Be connected to the cluster of `backend.address` in the block, or to one that is started on this machine.

    A connection that this process has already is used, and left. cpus: that a cluster on this machine offers at least:
    the operating system shares the real ones. Raises UserError when the cluster cannot be joined.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    common = {"namespace": f"ulorl-{uuid.uuid4().hex}", "log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address not in ("", "local"):
        try:
            ray.init(address=settings.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            token = f"{one_line(error)}; a cluster that asks for a token needs RAY_AUTH_MODE=token in the environment"
            raise unreachable(settings.address, f"the cluster cannot be joined ({token})") from None
    else:
        ray.init(address="local", include_dashboard=False, num_cpus=max(os.cpu_count() or 1, cpus), **common)
    try:
        yield
    finally:
        ray.shutdown()


def cluster_gpus() -> int:
    """Return the number of GPUs of the cluster."""
    return int(ray.cluster_resources().get("GPU", 0))


def _check_size(needs: Needs) -> None:
    total, wanted = ray.cluster_resources(), needs.bundles()
    for name in ("GPU", "CPU"):
        if sum(bundle.get(name, 0) for bundle in wanted) > total.get(name, 0):
            raise _too_small(needs, "in all", total)


def _too_small(needs: Needs, which: str, there: dict[str, float]) -> UserError:
    bundles = needs.bundles()
    wanted = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in ("GPU", "CPU")}
    largest = max(int(bundle.get("GPU", 0)) for bundle in bundles)
    together = f" ({largest} of the GPUs of one machine for each engine)" if largest > 1 else ""
    return UserError(
        f"backend.kind=ray: {needs.ranks} processes of the learner and {needs.engines} engines need "
        f"{wanted['GPU']:g} GPUs{together} and {wanted['CPU']:g} CPUs; the cluster has {there.get('GPU', 0):g} GPUs "
        f"and {there.get('CPU', 0):g} CPUs {which}. Lower backend.ranks or backend.engines, add machines, or wait for "
        "other work on the cluster to end",
        code=ErrorCode.CLUSTER_UNAVAILABLE,
        key="backend.ranks",
    )


def _free_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        return f"tcp://{host}:{free.getsockname()[1]}"


def _visible_gpus() -> str:
    return os.environ.get(GPUS, "")
