"""The whole configuration tree. Importing this pulls in neither torch nor any engine.

Recipes are TOML files, layered left to right; then `key.sub=value` from the command line. Unknown keys and impossible
combinations are refused with the key's name. The resolved tree is saved with the run as config.json.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from ulorl.errors import UserError
from ulorl.sections import PACKED_MASK_TOKENS, Natural, Positive
from ulorl.sections import Data as Data
from ulorl.sections import Engine as Engine
from ulorl.sections import Eval as Eval
from ulorl.sections import Log as Log
from ulorl.sections import Lora as Lora
from ulorl.sections import Model as Model
from ulorl.sections import Mpt as Mpt
from ulorl.sections import Objective as Objective
from ulorl.sections import Optim as Optim
from ulorl.sections import Reward as Reward
from ulorl.sections import Rollout as Rollout
from ulorl.sections import Rope as Rope
from ulorl.sections import Run as Run
from ulorl.sections import Section as Section
from ulorl.sections import Vllm as Vllm


class Config(Section):
    """One run. Defaults are the paper's section 4.1."""

    steps: Positive = Field(default=300, description="steps of Algorithm 1")
    seed: Natural = Field(default=0, description="of every draw and of the order of the problems")
    run: Run = Run()
    model: Model = Model()
    engine: Engine = Engine()
    rollout: Rollout = Rollout()
    objective: Objective = Objective()
    optim: Optim = Optim()
    reward: Reward = Reward()
    data: Data
    eval: Eval = Eval()
    log: Log = Log()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.objective.importance == "tois" and self.rollout.segments > 1:
            raise ValueError(
                f"objective.importance=tois needs rollout.segments=1 (found {self.rollout.segments}): with more "
                "segments a sample's tokens come from several versions; use pois or sais"
            )
        if self.objective.tis_cap and self.objective.importance != "pois":
            raise ValueError(
                f"objective.tis_cap={self.objective.tis_cap} goes with objective.importance=pois: the old policy of "
                f"{self.objective.importance} is the engine's already, its ratio would be counted twice"
            )
        truncated = self.rollout.top_p < 1 or self.rollout.top_k > 0
        if self.engine.kind == "vllm" and truncated and self.rollout.temperature != 1:
            raise ValueError(
                f"engine.kind=vllm with rollout.temperature={self.rollout.temperature} needs rollout.top_p=1 and "
                "rollout.top_k=0: vLLM gives log-probs either before temperature or after top-p and top-k, and "
                "training needs those between"
            )
        flash, autocast = self.model.attention == "flash_attention_2", self.optim.autocast == "bfloat16"
        if autocast and self.model.dtype == "bfloat16":
            raise ValueError(
                "optim.autocast=bfloat16 goes with model.dtype=float32: weights stay float32 and are rounded for each "
                "product; those of model.dtype=bfloat16 are bfloat16 already"
            )
        if flash and not autocast and self.model.dtype == "float32":
            raise ValueError(
                "model.attention=flash_attention_2 needs bfloat16: optim.autocast=bfloat16, or model.dtype=bfloat16"
            )
        if self.optim.layout == "packed" and not flash and self.optim.microbatch_tokens > PACKED_MASK_TOKENS:
            raise ValueError(
                f"optim.layout=packed with model.attention={self.model.attention} needs optim.microbatch_tokens <= "
                f"{PACKED_MASK_TOKENS} (found {self.optim.microbatch_tokens}): its mask takes tokens x tokens bytes; "
                "take flash_attention_2, or optim.layout=padded, which needs no mask"
            )
        if self.objective.overlong == "soft" and not 0 < self.objective.overlong_buffer < self.rollout.max_tokens:
            raise ValueError(
                f"objective.overlong=soft needs 0 < objective.overlong_buffer < rollout.max_tokens, "
                f"found {self.objective.overlong_buffer}"
            )
        sources = {"data": self.data, **({"eval.data": self.eval_data()} if self.eval.data else {})}
        for key, data in sources.items():
            if self.reward.kind in ("countdown", "reasoning_gym") and data.kind != self.reward.kind:
                raise ValueError(
                    f"reward.kind={self.reward.kind} judges problems of {key}.kind={self.reward.kind} only, found "
                    f"{key}.kind={data.kind}; for files and the hub take reward.kind=math or function"
                )
        return self

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """Of the rollout's copy of the weights."""
        return self.model.dtype if self.engine.dtype == "auto" else self.engine.dtype

    @property
    def learner_dtype(self) -> Literal["float32", "bfloat16"]:
        """What the learner's forward pass computes in."""
        return "bfloat16" if self.optim.autocast == "bfloat16" else self.model.dtype

    def eval_data(self) -> Data:
        """The held-out problems: `data` with the keys of `eval.data` laid over it."""
        try:
            return Data.model_validate({**self.data.model_dump(), **self.eval.data})
        except ValidationError as error:
            lines = [_explain(dict(e), within=("eval", "data"), section=Data) for e in error.errors()]
            raise ValueError("; ".join(lines)) from None


def load(recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read recipes left to right, then `key.sub=value` overrides. Raises UserError naming the file or the key."""
    tree: dict[str, Any] = {}
    for recipe in recipes:
        tree = _layered(tree, _read_toml(Path(recipe)))
    for override in overrides:
        tree = _layered(tree, parse_override(override))
    return build(tree, " + ".join([*map(str, recipes), *overrides]) or "the configuration")


def build(tree: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check a tree of plain values. Raises UserError with a line for each wrong key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(dict(e)) for e in error.errors()]
        raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def overridden(saved: Config, overrides: Sequence[str], *, may_change: Sequence[str]) -> Config:
    """A saved configuration with overrides. Raises UserError naming the keys that a resumed run may not change."""
    tree = saved.model_dump()
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == free or key.startswith(free + ".") for free in may_change):
            raise UserError(
                f"{key}: a resumed run may change {', '.join(may_change)} only; for another run give another run.dir"
            )
        tree = _layered(tree, parse_override(override))
    return build(tree, " ".join(overrides) or "the saved configuration")


def from_json(path: Path) -> Config:
    """The resolved configuration saved with a run. Raises UserError when it is missing or damaged."""
    try:
        return build(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; a run folder holds its config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=value` as a tree. The value is read as TOML, and as a plain string when it is not TOML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{text!r}: expected key=value, for example optim.lr=3e-6")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes/ holds the ones that come with the project") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and value  # an empty table replaces
        merged[key] = _layered(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _explain(error: Mapping[str, Any], within: tuple[str, ...] = (), section: type[BaseModel] = Config) -> str:
    """One line for one of pydantic's errors in `section`, which stands at the key `within`."""
    key = ".".join(str(part) for part in (*within, *error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(error['loc'], section)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":  # ours: names the key itself
        return str(error["ctx"]["error"])
    return f"{key}: {error['msg']}, found {error['input']!r}"


def _nearest(loc: Sequence[Any], top: type[BaseModel]) -> str:
    section: type[BaseModel] | None = top
    for part in loc[:-1]:
        inner = section.model_fields[part].annotation if section and part in section.model_fields else None
        section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    if section is None:
        return ""
    near = get_close_matches(str(loc[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(section.model_fields)}"
