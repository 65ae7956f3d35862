"""Tensors by name that are sharded over several processes, in a folder of safetensors files of each process.

torch's distributed checkpoint (DCP) writes and reads them. Nothing is pickled, and a folder can be loaded with another
number of processes, or by one without a process group. Files that safetensors wrote whole can be loaded as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from ulorl.errors import name_some, one_line
from ulorl.models.agreement import raising_together

FILE_BYTES = 2 * 2**30  # what a process holds once more while it writes a file, or twice of tensors on a GPU


@torch.no_grad()
def save_sharded(folder: Path, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Write tensors, sharded (DTensor) or the same on all ranks, and flush them to the disk.

    folder: on a disk that all ranks share; the caller makes it, and publishes it when all ranks have returned. group:
    the processes that hold the shards (default: all); every one must call this with the same names.

    Raises OSError on all ranks when one cannot write.
    """
    with _dcp_errors():
        writer = HuggingFaceStorageWriter(str(folder), _files(tensors, group), save_distributed=True)
        save(_with_dimensions(tensors), storage_writer=writer, process_group=group)


@torch.no_grad()
def load_sharded(folder: Path, into: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Fill tensors in place with those of the same names in the safetensors files of a folder.

    Every rank reads the parts that its shards consist of. The files may have been written by another number of ranks,
    and may hold more tensors than these. Numbers are converted to the type of the tensor that takes them.

    Raises ValueError on all ranks when a tensor is missing or has another shape, or a file is damaged, and OSError when
    a file cannot be read.
    """
    reader = HuggingFaceStorageReader(str(folder))
    with raising_together(group), _dcp_errors():
        saved: dict[str, Any] = dict(reader.read_metadata().state_dict_metadata)
        if absent := sorted(into.keys() - saved.keys()):
            raise ValueError(f"{folder}: there is no {name_some(absent)}")
        if cut := sorted(name for name in into if not _complete(saved[name])):
            raise ValueError(f"{folder}: files are missing, which hold parts of {name_some(cut)}")
        scalars = {name for name, metadata in saved.items() if not metadata.size}  # of files that were written whole
    tensors = {name: tensor for name, tensor in into.items() if name in scalars}
    tensors |= _with_dimensions({name: tensor for name, tensor in into.items() if name not in scalars})
    with _dcp_errors():
        load(tensors, storage_reader=reader, process_group=group)


def saved_names(folder: Path) -> set[str]:
    """Return the names of the tensors in the safetensors files of a folder. Raises ValueError or OSError for files that
    cannot be read."""
    with _dcp_errors():
        return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def shard_of(part: Tensor, like: DTensor) -> DTensor:
    """Return a tensor that is sharded as `like` is, with `part` as this rank's part. It shares the memory of `part`,
    which may be the CPU's when `like` is on GPUs."""
    mesh = like.device_mesh  # `from_local` would copy the part to the devices of the mesh
    if part.device.type != mesh.device_type:
        mesh = _mesh_of_cpus(mesh)
    return DTensor.from_local(part, mesh, like.placements, shape=like.shape, stride=like.stride())


@cache
def _mesh_of_cpus(mesh: DeviceMesh) -> DeviceMesh:
    return DeviceMesh("cpu", mesh.mesh)


def _complete(saved: TensorStorageMetadata) -> bool:
    """Return whether the chunks of a saved tensor are the whole tensor; they never overlap."""
    return sum(chunk.sizes.numel() for chunk in saved.chunks) == saved.size.numel()


def _files(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> dict[str, int]:
    """Return for each tensor the number of the file, of each process, that it is written to."""
    world = dist.get_world_size(group) if dist.is_initialized() else 1
    files: dict[str, int] = {}
    size = 0
    for name, tensor in tensors.items():
        files[name] = 1 + size // FILE_BYTES
        size += tensor.nbytes // (world if isinstance(tensor, DTensor) else 1)
    return files


def _with_dimensions(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of the tensors with one dimension at least, which is what DCP's safetensors files can hold."""
    return {name: tensor.detach() if tensor.dim() else tensor.detach().view(1) for name, tensor in tensors.items()}


@contextmanager
def _dcp_errors() -> Iterator[None]:
    """Turn DCP's error, which is no Exception, and safetensors' own into OSError or ValueError; silence warnings."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        reasons = [reason for reason, _ in error.failures.values()]
        disk = [reason for reason in reasons if isinstance(reason, OSError)]
        if disk:
            raise disk[0] from None
        raise ValueError(str(reasons[0])) from None
    except SafetensorError as error:
        raise ValueError(one_line(error)) from None
