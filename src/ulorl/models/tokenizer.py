"""Loads tokenizers, and finds the tokens that end an output."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line


def load_tokenizer(path: str, location: str, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model at `location`. Raises UserError, naming `path`, when it is missing or damaged."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=trust_remote_code)
        tokenizer("")  # some wrong settings show only when the tokenizer is used
    except Exception as error:  # the Rust tokenizer raises bare Exception for a damaged tokenizer.json
        raise UserError(
            f"{path}: no usable tokenizer ({one_line(error)}); a model folder needs tokenizer.json and "
            "tokenizer_config.json, as written by tokenizer.save_pretrained(folder)",
            code=ErrorCode.MODEL_TOKENIZER,
            file=path,
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise UserError(
            f"{path}: the tokenizer has no vocabulary; is tokenizer.json missing from the folder?",
            code=ErrorCode.MODEL_TOKENIZER,
            file=path,
        )
    return tokenizer


def read_eos_ids(path: str, location: str, config: Any, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Return the token ids that end an output, ascending.

    They are those of generation_config.json, of the model's text configuration `config`, and of the tokenizer. Raises
    UserError, naming `path`, when none of them names one, because no output would ever be complete.
    """
    ids, vocabulary = [tokenizer_eos], getattr(config, "vocab_size", None) or sys.maxsize
    for settings in (config, _generation_config(path, location)):
        named = getattr(settings, "eos_token_id", None)
        ids += named if isinstance(named, (list, tuple)) else [named]
    if wrong := [i for i in ids if i is not None and (isinstance(i, bool) or not isinstance(i, int) or i < 0)]:
        raise UserError(
            f"{path}: eos_token_id in generation_config.json or config.json is {wrong[0]!r}, which is no token id",
            code=ErrorCode.MODEL_CONFIG,
            file=path,
        )
    named_ids = {i for i in ids if i is not None}
    found = tuple(sorted(i for i in named_ids if i < vocabulary))
    if not found:
        beyond = f" below vocab_size={vocabulary} (found {named_ids})" if named_ids else ""
        raise UserError(
            f"{path}: neither generation_config.json nor the tokenizer names an EOS token{beyond}; "
            "set eos_token_id in generation_config.json",
            code=ErrorCode.MODEL_TOKENIZER,
            file=path,
        )
    return found


def _generation_config(path: str, location: str) -> GenerationConfig | None:
    try:
        return GenerationConfig.from_pretrained(location)
    except Exception as error:
        if not (Path(location) / "generation_config.json").exists():  # a folder may be without one
            return None
        raise UserError(
            f"{path}: generation_config.json cannot be used ({one_line(error)})", code=ErrorCode.MODEL_CONFIG, file=path
        ) from error
