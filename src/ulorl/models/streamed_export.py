"""Writes a transformers folder from weights that arrive one by one, so that the whole model is never in memory.

The tensors are those of `save_pretrained`, bit for bit. A safetensors file is 8 bytes with the length of its header, a
JSON header with type, shape and place of each tensor, and the tensors' bytes.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.errors import name_some
from ulorl.models.weight_conversion import WeightConversion
from ulorl.models.weight_headers import INDEX, WEIGHTS

SHARD_BYTES = 5 * 10**9
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def export_streamed(
    weights: Iterable[tuple[str, Tensor]], model: PreTrainedModel, folder: Path, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write config.json, generation_config.json and the weights of a model into the new folder `folder`.

    At most two layers, and the weights outside the layers, are in memory at a time. After an error the remaining
    weights are still taken from the iterator: other ranks may wait for this one to gather them.

    weights: every parameter and saved buffer by the model's name, tied ones once or more often, in any order; the
        model's own order needs the least memory. model: on the meta device; it gives configurations, names, shapes and
        the types in which the weights must come. shard_bytes: the largest size of a file, which only a single larger
        tensor exceeds.

    Raises ValueError for unknown, missing or misshapen weights.
    """
    weights = iter(weights)
    try:
        _export(weights, WeightConversion(model), folder, shard_bytes)
    except BaseException:
        deque(weights, maxlen=0)
        raise


def _export(
    weights: Iterator[tuple[str, Tensor]], conversion: WeightConversion, folder: Path, shard_bytes: int
) -> None:
    # Without tensors it writes the configurations, and the Python code of a model that has its own.
    conversion.model.save_pretrained(folder, state_dict={})
    (folder / WEIGHTS).unlink(missing_ok=True)
    stored = conversion.stored()
    files = dict(_files(stored, shard_bytes))
    with ExitStack() as stack:
        places: dict[str, tuple[BinaryIO, int]] = {}
        for name, shard in files.items():
            file = stack.enter_context((folder / name).open("wb"))
            places |= {key: (file, place) for key, place in _begin(file, shard).items()}
        untied = ((name, tensor) for name, tensor in weights if name not in conversion.tied)
        for name, tensor in conversion.convert(untied):
            _write(*places.pop(name), name, tensor, stored[name])
    if places:
        raise ValueError(f"weights: missing {name_some(sorted(places))}")
    if len(files) > 1:
        _write_index(folder / INDEX, files)


def _files(stored: Mapping[str, Tensor], shard_bytes: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield names and tensors of the files, of at most `shard_bytes` each."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in stored.items():
        size += tensor.nbytes
        if shards[-1] and size > shard_bytes:
            shards.append({})
            size = tensor.nbytes
        shards[-1][name] = tensor
    for i, shard in enumerate(shards, 1):
        yield WEIGHTS if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors", shard


def _begin(file: BinaryIO, shard: Mapping[str, Tensor]) -> dict[str, int]:
    """Write the header of a safetensors file. Return where the bytes of each tensor begin."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name, tensor in sorted(shard.items(), key=lambda item: -item[1].element_size()):  # keeps all aligned
        begins[name], end = end, end + tensor.nbytes
        header[name] = {"dtype": _TYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [begins[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: begin + file.tell() for name, begin in begins.items()}


def _write(file: BinaryIO, place: int, name: str, tensor: Tensor, expected: Tensor) -> None:
    if (tensor.shape, tensor.dtype) != (expected.shape, expected.dtype):
        raise ValueError(
            f"weights: {name} is {tensor.dtype} {list(tensor.shape)}, expected {expected.dtype} {list(expected.shape)}"
        )
    file.seek(place)
    file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _write_index(path: Path, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    tensors = [tensor for shard in files.values() for tensor in shard.values()]
    totals = {
        "total_parameters": sum(tensor.numel() for tensor in tensors),
        "total_size": sum(tensor.nbytes for tensor in tensors),
    }
    weight_map = {name: file for file, shard in files.items() for name in shard}
    index = {"metadata": totals, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
