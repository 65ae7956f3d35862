"""A model folder or hub name and what its small files say: configuration, tokenizer, EOS tokens, sizes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ulorl.config.model_config import RopeConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line, one_line
from ulorl.models.tokenizer import load_tokenizer, read_eos_ids
from ulorl.models.yarn import UNSCALED, scale_positions

TINY = "ulorl:tiny"
TINY_MAZE = "ulorl:tiny-maze"
SHIPPED = {TINY: "countdown", TINY_MAZE: "maze"}  # the models of the package, each with the task that it is for


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and how it is read. Each of its small files is read once, when it is first needed.

    path: a transformers folder, a hub name, or a key of SHIPPED. trust_remote_code: run Python code found beside the
    weights. rope: YaRN, which `config` and every model made from it then carry.

    Every property raises UserError, naming `path`, when its files are missing or cannot be used.
    """

    path: str
    trust_remote_code: bool = False
    rope: RopeConfig = UNSCALED

    def __reduce__(self) -> tuple[type[ModelSource], tuple[str, bool, RopeConfig]]:
        """Pickle without what was read: another process reads it itself, after it has imported the model's code."""
        return ModelSource, (self.path, self.trust_remote_code, self.rope)

    @cached_property
    def location(self) -> str:
        """The local folder, or the hub name, that transformers loads from."""
        return _locate(self.path)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The configuration of config.json with `rope` in it. Copy it before changing it."""
        config: PreTrainedConfig = _read_config(self.path, self.location, self.trust_remote_code)
        scale_positions(config, self.rope, self.path)
        return config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer in the model's folder."""
        return load_tokenizer(self.path, self.location, trust_remote_code=self.trust_remote_code)

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an output, ascending: those of generation_config.json, config.json and the tokenizer."""
        return read_eos_ids(self.path, self.location, text_config(self.config), self.tokenizer.eos_token_id)

    @property
    def context_length(self) -> int | None:
        """Positions that the model is made for, prompt and output together; None when it names no limit."""
        return context_length(self.config)

    @property
    def vocabulary(self) -> int:
        """The number of token ids that the model knows (config.json's vocab_size)."""
        return int(text_config(self.config).vocab_size)


def text_config(of: PreTrainedModel | PreTrainedConfig) -> Any:
    """Return the configuration of the language model, which may be a part of a larger model's configuration."""
    return getattr(of, "config", of).get_text_config(decoder=True)


def context_length(of: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Return the positions that a model is made for, prompt and output together; None when it names no limit.

    With YaRN these are its factor times the original length.
    """
    config = text_config(of)
    length = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if length and rope.get("rope_type") == "yarn":
        length = max(length, int(rope["factor"] * (rope.get("original_max_position_embeddings") or length)))
    return int(length) if length else None


def _locate(path: str) -> str:
    if path in SHIPPED:
        from ulorl.models.tiny import model_path

        return str(model_path(SHIPPED[path]))
    folder = os.path.expanduser(path)  # os.path finds nothing where Path raises: names too long, unknown users
    if os.path.isdir(folder):
        if (Path(folder) / "config.json").is_file():
            return folder
        problem = "no config.json in this folder; a transformers model folder has one"
    elif os.path.exists(folder):
        problem = "is a file; give the folder that holds config.json and the safetensors"
    elif path.startswith("ulorl:"):
        names = ", ".join(f"{name} ({task})" for name, task in SHIPPED.items())
        problem = f"no model of the package has this name; there are {names}"
    elif re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", path):
        return path
    else:
        problem = "no such folder, and not a hub name (owner/name) either"
    raise UserError(f"{path}: {problem}", code=ErrorCode.MODEL_NOT_FOUND, file=path)


def _read_config(path: str, location: str, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(location, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many types
        code, key = ErrorCode.MODEL_NOT_FOUND, ""
        if "trust_remote_code" in str(error):
            code, key = ErrorCode.MODEL_REMOTE_CODE, "model.trust_remote_code"
            problem = "the folder contains Python code of its own; set model.trust_remote_code=true if you trust it"
        elif Path(location).is_dir():
            code = ErrorCode.MODEL_CONFIG
            problem = f"config.json cannot be used ({one_line(error)})"
        else:
            problem = (
                f"no such folder in {Path.cwd()}, and no model of the hub that could be read; check the path, or name "
                f"and connection ({first_line(error)})"
            )
        raise UserError(f"{path}: {problem}", code=code, file=path, key=key) from error
