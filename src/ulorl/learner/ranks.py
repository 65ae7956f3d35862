"""What the ranks of a learner decide and exchange together: nothing for one process, collectives for many.

The ranks form a mesh of data x sequence. Ranks of one data index hold parts of the same sequences (Ulysses), and every
parameter is sharded over all ranks (FSDP2). Each rank gets all samples and computes the same plan, so no samples move.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")
DATA, SEQUENCE = "data", "sequence"


class Ranks(Protocol):
    """The ranks that share a learner. Every method is called by all of them, in the same order."""

    @property
    def world(self) -> int:
        """The number of ranks."""
        ...

    @property
    def rank(self) -> int:
        """The number of this rank, from 0."""
        ...

    @property
    def data(self) -> int:
        """The number of ranks, or groups of ranks, that work on different samples."""
        ...

    @property
    def data_index(self) -> int:
        """The share of the samples that this rank works on, from 0."""
        ...

    @property
    def sequence(self) -> int:
        """The number of ranks that share each sequence."""
        ...

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank."""
        ...

    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, in their order."""
        ...

    def gather_shares(self, value: T) -> list[T]:
        """Return the value of each data index, in their order; ranks of one data index have the same."""
        ...


@dataclass(frozen=True)
class OneRank:
    """One process that trains alone."""

    world: int = 1
    rank: int = 0
    data: int = 1
    data_index: int = 0
    sequence: int = 1

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return the flags."""
        return flags

    def gather(self, value: T) -> list[T]:
        """Return the value as the only one."""
        return [value]

    gather_shares = gather


ONE_RANK = OneRank()


class MeshRanks:
    """The ranks of torch's default process group, as a mesh of data x sequence.

    device_type: `cpu` or `cuda`. sequence: a divisor of the number of ranks.
    """

    def __init__(self, device_type: str, sequence: int) -> None:
        self.world, self.rank, self.sequence = dist.get_world_size(), dist.get_rank(), sequence
        self.data, self.data_index = self.world // sequence, self.rank // sequence
        self.mesh: DeviceMesh = init_device_mesh(device_type, (self.data, sequence), mesh_dim_names=(DATA, SEQUENCE))
        self.shard_mesh: DeviceMesh = self.mesh._flatten("shard")

    @property
    def sequence_group(self) -> dist.ProcessGroup:
        """The ranks that share this rank's sequences."""
        return self.mesh.get_group(SEQUENCE)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any rank. The tensor is on the CPU: a GPU does not wait for it."""
        set_anywhere = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(set_anywhere, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in set_anywhere.tolist())

    def gather(self, value: T) -> list[T]:
        """Return the value of each rank, in their order."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def gather_shares(self, value: T) -> list[T]:
        """Return the value of each data index, in their order; ranks of one data index have the same."""
        return self.gather(value)[:: self.sequence]


def join_process_group(*, rank: int, world: int, init_method: str = "env://", timeout: timedelta | None = None) -> None:
    """Join torch's default process group: gloo for tensors on the CPU, NCCL for those on a GPU where there is one.

    init_method: how the ranks find each other, as torch documents it. timeout: of a collective; None: torch's own.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=world, timeout=timeout)


@contextmanager
def process_group(
    device: torch.device, *, rank: int, world: int, init_method: str = "env://", timeout: timedelta | None = None
) -> Iterator[None]:
    """Be in torch's default process group for the block (`join_process_group`), with `device` as the current one."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    join_process_group(rank=rank, world=world, init_method=init_method, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()
