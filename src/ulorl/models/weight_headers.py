"""Compares the headers of a folder's safetensors files with the model of its config.json, without reading weights.

A safetensors file begins with the name, type, shape and place of each tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, name_some, one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = {".bin", ".pt", ".pth", ".gguf"}
Shape = tuple[int, ...]


def check_weights(path: str, folder: Path, model: PreTrainedModel) -> None:
    """Compare the headers of a folder's safetensors files with the meta model of its config.json.

    Raises UserError, naming the file or the tensor: no such files, a file truncated or not safetensors, a shard
    missing, tensors missing, of another shape, or of layers that config.json does not have.
    """
    found = tensor_shapes(path, folder)
    if getattr(model.config, "quantization_config", None):
        return  # packed weights have other shapes than the layers
    known = {name: tuple(t.shape) for name, t in revert_weight_conversion(model, dict(model.state_dict())).items()}
    needed = revert_weight_conversion(model, dict(model.named_parameters()))  # tied ones once
    prefix = f"{model.base_model_prefix}."
    if not known.keys() & found.keys():  # saved without the head, as the base model alone
        found = {prefix + name: shape for name, shape in found.items()}
    refuse_mismatched(path, [(n, shape, known[n]) for n, shape in found.items() if shape != known.get(n, shape)])
    missing = sorted(needed.keys() - found.keys())
    renamed = _tails(found) & _tails(known) and len(missing) > len(needed) // 2  # transformers may know the names
    if not renamed:
        refuse_missing(path, missing, model)
    refuse_surplus(path, found.keys() - known.keys(), known)


def tensor_shapes(path: str, folder: Path) -> dict[str, Shape]:
    """Return the shape of each tensor in a folder's safetensors files, by name. Raises UserError, naming the file."""
    files = tensor_files(path, folder)
    shapes: dict[str, Shape] = {}
    for file in sorted(set(files.values())):
        shapes |= _header(path, folder / file)
    if absent := sorted(files.keys() - shapes.keys()):
        raise _error(
            path,
            f"{INDEX} names {len(absent)} tensors that its files do not hold "
            f"({files[absent[0]]} lacks {name_some(absent)}); copy or download the folder again",
        )
    return shapes


def tensor_files(path: str, folder: Path) -> dict[str, str]:
    """Return which of a folder's safetensors files holds each tensor, by name. Raises UserError, naming the file."""
    if (folder / WEIGHTS).is_file():
        return dict.fromkeys(_header(path, folder / WEIGHTS), WEIGHTS)
    if not (folder / INDEX).is_file():
        raise _error(path, no_safetensors(folder))
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _error(path, f"{INDEX} cannot be used ({one_line(error)})") from None


def refuse_mismatched(path: str, mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]]) -> None:
    """Refuse tensors whose shapes disagree: (name, shape in the file, shape by config.json) each. Raises UserError."""
    if wrong := sorted(mismatched, key=lambda entry: entry[0]):
        name, found, expected = wrong[0]
        raise _error(
            path,
            f"weights and config.json disagree about the shape of {len(wrong)} tensors "
            f"({name}: {list(found)} in the file, {list(expected)} by config.json)",
        )


def refuse_missing(path: str, missing: Collection[str], model: PreTrainedModel) -> None:
    """Refuse a model whose files lack tensors. Raises UserError when there are any."""
    if missing:
        raise _error(
            path,
            f"its safetensors files lack {len(missing)} of the weights of {type(model).__name__} "
            f"({name_some(sorted(missing))}); the folder is incomplete or holds another model than its config.json "
            "says",
        )


def refuse_surplus(path: str, surplus: Iterable[str], known: Iterable[str]) -> None:
    """Refuse surplus tensors named like the model's, which belong to layers that config.json would cut off.

    Other surplus tensors (of a vision tower, or an old buffer) do not belong to the language model. Raises UserError.
    """
    kinds = {_numberless(name) for name in known}
    if layers := sorted(name for name in surplus if _numberless(name) in kinds):
        raise _error(
            path,
            f"its safetensors files hold {len(layers)} tensors of layers that config.json does not have "
            f"({name_some(layers)}); is num_hidden_layers right?",
        )


def no_safetensors(folder: Path) -> str:
    """Describe a folder without safetensors, and the weights of other formats in it."""
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHERS)
    return "no *.safetensors in this folder; only safetensors are loaded" + (
        f" (found {name_some(others)}; convert with model.save_pretrained(folder))" if others else ""
    )


def _header(path: str, file: Path) -> dict[str, Shape]:
    try:
        with safe_open(file, framework="pt") as tensors:  # checks the file's length
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # SafetensorError, OSError, and torch's own for unknown types
        what = "there is no such file" if not file.is_file() else one_line(error)
        raise _error(
            path, f"{file.name}: the weights cannot be loaded ({what}); copy or download the folder again"
        ) from None


def _error(path: str, problem: str) -> UserError:
    return UserError(f"{path}: {problem}", code=ErrorCode.MODEL_WEIGHTS, file=path)


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _tails(names: Iterable[str]) -> set[str]:
    """`mlp.up_proj.weight` of `model.layers.0.mlp.up_proj.weight`, and the like."""
    return {".".join(_numberless(name).rsplit(".", 3)[-3:]) for name in names}
