"""What a model folder's files say about themselves, read without their weights: a safetensors file begins with the
name, type, shape and place of each tensor, and `config.json` is built as a model without memory to hold them against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ulorl.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = {".bin", ".pt", ".pth", ".gguf"}
Shape = tuple[int, ...]


def skeleton(path: str, config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `config` on torch's meta device: names and shapes, no memory. Raises UserError, naming `path`, when
    transformers cannot build it."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a model's code makes of sizes that do not fit
        raise UserError(f"{path}: config.json: no model can be built from it ({brief(error)})") from error
    return model


def check_weights(path: str, folder: Path, model: PreTrainedModel) -> None:
    """Hold the headers of a folder's safetensors files against the `skeleton` of its config.json.

    Raises UserError, naming the file or the tensor: no such files, one truncated or not safetensors, a shard missing,
    tensors missing, of another shape, or of layers that config.json does not have.
    """
    found = tensor_shapes(path, folder)
    if getattr(model.config, "quantization_config", None):
        return  # packed: shapes are not those of the layers
    known = {name: tuple(t.shape) for name, t in revert_weight_conversion(model, dict(model.state_dict())).items()}
    needed = revert_weight_conversion(model, dict(model.named_parameters()))  # tied ones once
    prefix = f"{model.base_model_prefix}."
    if not known.keys() & found.keys():  # saved without the head, as the base model alone
        found = {prefix + name: shape for name, shape in found.items()}
    refuse_mismatched(path, [(n, shape, known[n]) for n, shape in found.items() if shape != known.get(n, shape)])
    missing = sorted(needed.keys() - found.keys())
    if not _tails(found) & _tails(known) or len(missing) <= len(needed) // 2:  # else renamed: transformers may know how
        refuse_missing(path, missing, model)
    refuse_surplus(path, found.keys() - known.keys(), known)


def tensor_shapes(path: str, folder: Path) -> dict[str, Shape]:
    """The shape of each tensor by its name, of all files of a folder. Raises UserError naming the file."""
    if (folder / WEIGHTS).is_file():
        return _header(path, folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        raise UserError(f"{path}: {no_safetensors(folder)}")
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {INDEX} cannot be used ({brief(error)})") from None
    shapes: dict[str, Shape] = {}
    for file in sorted(set(files.values())):
        shapes |= _header(path, folder / file)
    if absent := sorted(files.keys() - shapes.keys()):
        raise UserError(
            f"{path}: {INDEX} names {len(absent)} tensors that its files do not hold "
            f"({files[absent[0]]} lacks {first(absent)}); copy or download the folder again"
        )
    return shapes


def refuse_mismatched(path: str, mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]]) -> None:
    """Raises UserError for tensors (name, shape in the file, shape by config.json), when there are any."""
    if wrong := sorted(mismatched, key=lambda entry: entry[0]):
        name, found, expected = wrong[0]
        raise UserError(
            f"{path}: weights and config.json disagree about the shape of {len(wrong)} tensors "
            f"({name}: {list(found)} in the file, {list(expected)} by config.json)"
        )


def refuse_missing(path: str, missing: Collection[str], model: PreTrainedModel) -> None:
    """Raises UserError for tensors that the files lack, when there are any."""
    if missing:
        raise UserError(
            f"{path}: its safetensors files lack {len(missing)} of the weights of {type(model).__name__} "
            f"({first(sorted(missing))}); the folder is incomplete or holds another model than its config.json says"
        )


def refuse_surplus(path: str, surplus: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for tensors like those of the model but of more layers: config.json would cut the model short.
    Other surplus tensors (of a vision tower, of an old buffer) are none of a language model's."""
    kinds = {_numberless(name) for name in known}
    if layers := sorted(name for name in surplus if _numberless(name) in kinds):
        raise UserError(
            f"{path}: its safetensors files hold {len(layers)} tensors of layers that config.json does not have "
            f"({first(layers)}); is num_hidden_layers right?"
        )


def no_safetensors(folder: Path) -> str:
    """A word on a folder without safetensors, and on what is there instead."""
    others = sorted(p.name for p in folder.iterdir() if p.suffix in _OTHERS)
    return "no *.safetensors in this folder; only safetensors are loaded" + (
        f" (found {first(others)}; convert with model.save_pretrained(folder))" if others else ""
    )


def first(names: list[str], count: int = 3) -> str:
    """The first of many names."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def brief(error: BaseException) -> str:
    """An exception on one line."""
    lines = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {lines[:200]}"


def _header(path: str, file: Path) -> dict[str, Shape]:
    try:
        with safe_open(file, framework="pt") as tensors:  # maps the file; refuses one shorter or longer than it says
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # a SafetensorError or OSError, and what torch makes of unknown types
        what = "there is no such file" if not file.is_file() else brief(error)
        raise UserError(
            f"{path}: {file.name}: the weights cannot be loaded ({what}); copy or download the folder again"
        ) from None


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _tails(names: Iterable[str]) -> set[str]:
    """Of `model.layers.0.mlp.up_proj.weight`: `mlp.up_proj.weight`."""
    return {".".join(_numberless(name).rsplit(".", 3)[-3:]) for name in names}
