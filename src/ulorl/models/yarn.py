"""YaRN by configuration: more positions than the model was trained on (section 4.1), in learner and engines alike.

YaRN is written into the model's configuration before the model is made. So every model, every checkpoint and the saved
model carry it, and transformers and vLLM compute the same frequencies from the same numbers.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ulorl.config.model_config import RopeConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

UNSCALED = RopeConfig()  # positions as the model's config.json says


def scale_positions(config: PreTrainedConfig, rope: RopeConfig, path: str) -> None:
    """Write `model.rope` into a model's configuration, keeping its rope_theta. Doing so twice changes nothing more.

    Raises UserError, naming `path`, for a model without rotary positions or with several kinds of them, one that
    already scales its positions in another way, and one made for more positions than this reaches.
    """
    if rope.type == "none":
        return
    text: Any = config.get_text_config(decoder=True)
    own = dict(getattr(text, "rope_parameters", None) or {})
    if "rope_theta" not in own:
        raise _error(path, f"{path} has no rotary positions, or several kinds of them; leave model.rope out")
    own.pop("type", None)  # what rope_type was called before transformers 5
    original = rope.original_max_position_embeddings
    wanted = {"rope_type": rope.type, "factor": rope.factor, "original_max_position_embeddings": original}
    found = {key: own[key] for key in wanted if key in own}
    if found["rope_type"] != "default" and found != wanted:
        raise _error(
            path,
            f"config.json of {path} scales positions already "
            f"({', '.join(f'{key}={value}' for key, value in found.items())}), and nothing is scaled twice; leave "
            "model.rope out to keep that scaling, or take a model without it",
        )
    if rope.length < text.max_position_embeddings and found != wanted:
        raise _error(
            path,
            f"factor x original_max_position_embeddings = {rope.length} positions, but {path} is made for "
            f"{text.max_position_embeddings} without it; leave model.rope out, or raise the factor",
        )
    text.rope_parameters = own | wanted
    text.max_position_embeddings = max(rope.length, text.max_position_embeddings)
    text.standardize_rope_params()
    if (kept := text.rope_parameters["original_max_position_embeddings"]) != original:
        raise _error(path, f"original_max_position_embeddings={original}: {path} has its own, {kept}, in config.json")


def rope_overrides(config: PreTrainedConfig, length: int) -> dict[str, Any]:
    """Return vLLM's `hf_overrides` for a configuration with YaRN, config.json's or ours; {} for one without.

    With them it decodes `length` positions, because vLLM takes max_position_embeddings as the limit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "yarn":
        return {}
    return {"rope_parameters": dict(rope), "max_position_embeddings": length}


def _error(path: str, problem: str) -> UserError:
    return UserError(f"model.rope: {problem}", code=ErrorCode.MODEL_UNSUPPORTED, key="model.rope", file=path)
