"""The files of a learner in a checkpoint: weights and moments, whole or sharded.

model/                  a transformers folder; of a sharded learner without the weights
adapters.safetensors    with LoRA only; model/ is then without them, as it was loaded
optimizer.safetensors   AdamW's moments by parameter name; with an entropy bonus its coefficient too
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.optimizer import Optimizer
from ulorl.learner.sharded_state import load_sharded, save_sharded, saved_names, shard_of
from ulorl.models.agreement import raising_together
from ulorl.models.lora import exact_state, save_exact
from ulorl.models.meta_loading import complete_model
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_source import ModelSource
from ulorl.models.weight_conversion import WeightConversion
from ulorl.models.weight_headers import WEIGHTS

MOMENTS, SHARDS = "optimizer.safetensors", "shards"
COEFFICIENT = "entropy_coefficient"
Tensors = dict[str, Tensor]


def writer(
    model: PreTrainedModel, optimizer: Optimizer, coefficient: float | None = None, *, copy: bool
) -> Callable[[Path], None]:
    """Return a function that writes the weights and moments of now, which this process holds whole, into a folder.

    coefficient: of the entropy bonus; None: there is none. copy: copy them into the memory of the CPU, so that an
    update may follow before they are written.
    """
    copied: Callable[[Tensors], Tensors] = _copies if copy else dict
    weights, adapters = map(copied, exact_state(model))
    moments = copied(_state(optimizer, coefficient))

    def write(folder: Path) -> None:
        save_exact(model, folder, (weights, adapters))
        save_file(moments, folder / MOMENTS)

    return write


def sharded_writer(
    model: PreTrainedModel,
    optimizer: Optimizer,
    group: dist.ProcessGroup,
    coefficient: float | None = None,
    *,
    copy: bool,
) -> Callable[[Path], None]:
    """Return a function that writes this rank's shards of weights and moments into a folder that all ranks share.

    coefficient: of the entropy bonus; None: there is none. group: all ranks, for this function only: it may run in a
    thread. The function raises an error of one rank on all of them: OSError, or UserError when they do not share the
    folder.
    """
    tensors = {**saved_tensors(model), **_state(optimizer, coefficient)}
    if copy:
        tensors = {name: _copy(tensor) for name, tensor in tensors.items()}

    def write(folder: Path) -> None:
        rank = dist.get_rank(group)
        with raising_together(group):
            if rank == 0:
                (folder / SHARDS).mkdir(exist_ok=True)
                model.save_pretrained(folder / "model", state_dict={})
                (folder / "model" / WEIGHTS).unlink(missing_ok=True)
        with raising_together(group):
            if not (folder / SHARDS).is_dir():  # writing would make it, on a disk of this rank's own
                raise UserError(
                    f"{folder}: rank {rank} of the learner does not see this folder; run.dir must be on a disk that "
                    "all processes of the learner share",
                    code=ErrorCode.FILE_NOT_WRITABLE,
                    key="run.dir",
                    file=folder,
                )
        save_sharded(folder / SHARDS, tensors, group)

    return write


def is_sharded(folder: Path) -> bool:
    """Return whether a checkpoint's weights are in shards and not in its model folder."""
    return (folder / SHARDS).is_dir()


def load_weights(model: PreTrainedModel, folder: Path, source: ModelSource) -> None:
    """Fill a model of `make_empty_model(source)`, which has memory by now, whole or sharded, with the weights of a
    sharded checkpoint."""
    complete_model(model, WeightConversion(make_meta_model(source)))
    load_sharded(folder / SHARDS, saved_tensors(model))


def load_moments(optimizer: Optimizer, folder: Path) -> None:
    """Load AdamW's moments and the count of updates from a checkpoint, whole or sharded."""
    if not is_sharded(folder) and not dist.is_initialized():
        tensors = load_file(folder / MOMENTS)
        optimizer.load_state({name: tensor for name, tensor in tensors.items() if name != COEFFICIENT})
        return
    where, updates = _state_folder(folder), torch.tensor(0)
    load_sharded(where, {"updates": updates})
    moments = _with_moments(optimizer.empty_state(), saved_names(where)) if updates else {}
    load_sharded(where, moments)
    optimizer.load_state({**moments, "updates": updates})


def load_coefficient(folder: Path) -> float:
    """Return the coefficient of the entropy bonus from a checkpoint, whole or sharded."""
    coefficient = torch.zeros(1, dtype=torch.float64)
    load_sharded(_state_folder(folder), {COEFFICIENT: coefficient})
    return float(coefficient)


def _state(optimizer: Optimizer, coefficient: float | None) -> Tensors:
    if coefficient is None:
        return optimizer.state()
    return {**optimizer.state(), COEFFICIENT: torch.tensor([coefficient], dtype=torch.float64)}


def _state_folder(folder: Path) -> Path:
    return folder / SHARDS if is_sharded(folder) else folder


def saved_tensors(model: PreTrainedModel) -> Tensors:
    """Return parameters and saved buffers by name, tied ones once."""
    state, shown = model.state_dict(), {name for name, _ in [*model.named_parameters(), *model.named_buffers()]}
    return {name: tensor for name, tensor in state.items() if name in shown}


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged checkpoint into a UserError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: damaged checkpoint ({type(error).__name__}: {error}); remove it to use the one before",
            code=ErrorCode.CHECKPOINT_DAMAGED,
            file=folder,
        ) from None


def _copies(tensors: Tensors) -> Tensors:
    """Copy tensors into the memory of the CPU. Copies of tensors that share memory, such as a tied head, share it too:
    writing them depends on it."""
    made: dict[tuple[object, ...], Tensor] = {}
    for tensor in tensors.values():
        if _place(tensor) not in made:
            made[_place(tensor)] = torch.empty_like(tensor, device="cpu").copy_(tensor)
    return {name: made[_place(tensor)] for name, tensor in tensors.items()}


def _copy(tensor: Tensor) -> Tensor:
    """Copy a tensor, or this rank's shard of it, into the memory of the CPU."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    copied = torch.empty_like(local, device="cpu").copy_(local)
    return shard_of(copied, tensor) if isinstance(tensor, DTensor) else copied


def _with_moments(state: Tensors, saved: set[str]) -> Tensors:
    """Return the part of an optimizer's state whose parameters have moments: one that never had a gradient has none."""
    parameters = {name.rpartition("/")[0] for name in saved}
    return {name: tensor for name, tensor in state.items() if name.rpartition("/")[0] in parameters}


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype
