"""Loads a model into the shards of several processes, without a full copy in each.

    model = make_empty_model(source, dtype)     on the meta device: no memory
    fully_shard(...); model.to_empty(device=device)
    load_into_shards(model, source)             reads weights, makes buffers, ties the head

Every rank reads the parts of the safetensors files that its shards consist of. A model whose files need more than
that (names of an older version, tensors computed from several others) is loaded whole by rank 0, which scatters one
parameter after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GenerationConfig, PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.models.agreement import raising_together
from ulorl.models.meta_model import make_meta_model
from ulorl.models.model_loading import check_model, load_model
from ulorl.models.model_source import ModelSource
from ulorl.models.weight_conversion import Place, Shape, WeightConversion
from ulorl.models.weight_headers import check_weights, tensor_files

_COPY_AGAIN = "copy or download the folder again"


def make_empty_model(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """Make the model that `load_model` loads, in eval mode, on the meta device: without memory and weights.

    Raises UserError when transformers cannot make it.
    """
    model = make_meta_model(source, dtype)
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False  # as load_model does
    kept = getattr(model, "_keep_in_fp32_modules_strict", None)
    if kept and dtype in (torch.float16, torch.bfloat16):  # in float32, when transformers loads the weights
        pattern = re.compile("|".join(kept).replace("*", ".*"))
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if pattern.search(name):
                tensor.data = tensor.data.float()
    if model.can_generate():
        try:
            model.generation_config = GenerationConfig.from_pretrained(source.location)
        except OSError:  # there is no generation_config.json
            model.generation_config = GenerationConfig.from_pretrained(
                source.location, config_file_name="config.json", _from_model_config=True
            )
    return model.eval()


@torch.no_grad()
def load_into_shards(model: PreTrainedModel, source: ModelSource, group: dist.ProcessGroup | None = None) -> None:
    """Fill parameters and buffers of a model from `make_empty_model`, which has memory by now, sharded or whole.

    group: the processes among which the parameters are sharded (default: all); every one of them must call this. The
    buffers that files do not hold, such as the frequencies of rotary positions, are computed, and tied parameters are
    tied, because `to_empty` loses both.

    Raises UserError on all ranks alike, for everything that `load_model` refuses.
    """
    with raising_together(group):
        conversion = WeightConversion(check_model(source))
        _refuse_quantized(source)
        folder = _local_folder(source, conversion.model)
        files = tensor_files(source.path, folder)
        places = conversion.places()
        complete_model(model, conversion)
        state = model.state_dict()
        held = {name: state[name] for name in conversion.held}
    if places is None or not {place.stored for found in places.values() for place in found} <= files.keys():
        _scatter(held, source, model.dtype, group)
        return
    with raising_together(group):
        read = _reader(folder, files, source.path)
        for name, tensor in held.items():
            local, offsets = local_shard(tensor)
            _fill(local, offsets, tensor.shape, places[name], read)
            _refuse_not_finite(source.path, name, local)


def complete_model(model: PreTrainedModel, conversion: WeightConversion) -> None:
    """Compute the buffers that files do not hold, such as the frequencies of rotary positions, and tie what is tied,
    in a model that `to_empty` gave memory. Raises UserError for a buffer that transformers does not compute."""
    _make_buffers(model, conversion.held.keys() | conversion.tied)
    model.tie_weights()


def local_shard(tensor: Tensor) -> tuple[Tensor, Shape]:
    """Return the part of a tensor that this process holds, sharing its memory, and where it begins in the whole."""
    if not isinstance(tensor, DTensor):
        return tensor, (0,) * tensor.dim()
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
    local: Tensor = tensor.to_local()
    return local, tuple(chunk.offsets)


def _fill(local: Tensor, offsets: Shape, shape: Shape, places: list[Place], read: Callable[[str], Any]) -> None:
    """Copy the part of a parameter that begins at `offsets` and has the shape of `local` from the tensors of the files.

    shape: the whole parameter's. places: its tensors. read: returns a tensor of the files as a slice.
    """
    if not local.numel():
        return
    part = tuple(slice(begin, begin + size) for begin, size in zip(offsets, local.shape, strict=True))
    if len(places) == 1 and places[0] == Place(places[0].stored, tuple(shape), _contiguous(shape), 0):
        local.copy_(read(places[0].stored)[part] if part else read(places[0].stored)[...])
        return
    low = offsets[0] * prod(shape[1:])
    high = low + local.numel()
    needed = [place for place in places if place.offset < high and place.end > low]
    whole, start = local, low
    direct = local.shape[1:] == shape[1:] and all(low <= p.offset and p.end <= high for p in needed)
    if not direct:  # a tensor of the files is cut by the border of the shard
        whole, start, needed = torch.empty(shape, dtype=local.dtype), 0, places
    for place in needed:
        view = whole.as_strided(place.size, place.stride, whole.storage_offset() + place.offset - start)
        view.copy_(read(place.stored)[...])
    if not direct:
        local.copy_(whole[part])


def _contiguous(shape: Shape) -> Shape:
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def _reader(folder: Path, files: dict[str, str], path: str) -> Callable[[str], Any]:
    """Return a function that gives a tensor of the files as a slice, which reads no more than what is taken of it."""

    @cache
    def opened(file: str) -> Any:
        return safe_open(folder / file, framework="pt").__enter__()  # type: ignore[no-untyped-call]

    def read(name: str) -> Any:
        try:
            return opened(files[name]).get_slice(name)
        except Exception as error:
            problem = f"{files[name]}: the weights cannot be loaded ({one_line(error)}); {_COPY_AGAIN}"
            raise UserError(f"{path}: {problem}", code=ErrorCode.MODEL_WEIGHTS, file=path) from error

    return read


def _scatter(held: dict[str, Tensor], source: ModelSource, dtype: torch.dtype, group: dist.ProcessGroup | None) -> None:
    """Load the whole model on rank 0, and give every rank its shards, one parameter after the other."""
    first = not dist.is_initialized() or dist.get_rank(group) == 0
    loaded: dict[str, Tensor] = {}
    with raising_together(group):
        if first:
            loaded = load_model(source, dtype=dtype, device="cpu").state_dict()
    for name, tensor in held.items():
        whole = loaded[name].to(tensor.dtype) if first else torch.empty(tensor.shape, dtype=tensor.dtype)
        if isinstance(tensor, DTensor):
            shard = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=0)
            tensor.to_local().copy_(shard.to_local())
        else:
            whole = whole.to(tensor.device)
            if dist.is_initialized():
                dist.broadcast(whole, group=group, group_src=0)
            tensor.copy_(whole)


def _make_buffers(model: PreTrainedModel, stored: Iterable[str]) -> None:
    """Compute the buffers that the files do not hold, as transformers does when it loads a model.

    Raises UserError for a buffer that transformers does not compute.
    """
    stored = set(stored)
    modules: dict[str, torch.nn.Module] = {}
    for name, _ in model.named_buffers():
        if name not in stored:
            owner = name.rpartition(".")[0]
            modules[owner] = model.get_submodule(owner)
    for owner, module in modules.items():
        buffers = {
            name: b for name, b in module.named_buffers(recurse=False) if f"{owner}.{name}".strip(".") not in stored
        }
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' mark: leave it alone
        made = [_initialised(model, module, buffers, filling) for filling in (0, 1)]
        for name, first, second in zip(buffers, *made, strict=True):
            if not torch.equal(first, second):  # what was in the buffer before is still there
                raise UserError(
                    f"{type(model).__name__}: the buffer {owner}.{name} cannot be computed for a sharded model; "
                    "train it on one device",
                    code=ErrorCode.MODEL_UNSUPPORTED,
                )


def _initialised(
    model: PreTrainedModel, module: torch.nn.Module, buffers: dict[str, Tensor], filling: int
) -> list[Tensor]:
    """Let transformers compute the buffers of a module, which were filled with a number. Return copies of them."""
    for buffer in buffers.values():
        buffer.fill_(filling)
    model._init_weights(module)
    return [buffer.clone() for buffer in buffers.values()]


def _local_folder(source: ModelSource, model: PreTrainedModel) -> Path:
    """Return the folder with the model's files; those of a model on the hub are downloaded and checked."""
    if Path(source.location).is_dir():
        return Path(source.location)
    try:
        folder = Path(snapshot_download(source.location, allow_patterns=["*.safetensors", "*.json"]))
    except Exception as error:
        problem = f"the weights cannot be loaded ({one_line(error)}); {_COPY_AGAIN}"
        raise UserError(f"{source.path}: {problem}", code=ErrorCode.MODEL_WEIGHTS, file=source.path) from error
    check_weights(source.path, folder, model)
    return folder


def _refuse_quantized(source: ModelSource) -> None:
    if getattr(source.config, "quantization_config", None):
        raise UserError(
            f"{source.path}: its weights are quantized, and a sharded learner cannot load them; save the model with "
            "plain weights, or train it on one device",
            code=ErrorCode.MODEL_UNSUPPORTED,
            file=source.path,
        )


def _refuse_not_finite(path: str, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise UserError(
            f"{path}: {name} holds NaN or infinite numbers; {_COPY_AGAIN}", code=ErrorCode.MODEL_WEIGHTS, file=path
        )
