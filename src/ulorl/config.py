"""The whole configuration tree. Importing this pulls in neither torch nor any engine.

Recipes are TOML files, layered left to right; then `key.sub=value` from the command line. Unknown keys and impossible
combinations are refused with the key's name. The resolved tree is saved with the run as config.json.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from ulorl.errors import UserError, bad_character
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

S = TypeVar("S", bound=Section)
_OVERRIDE = re.compile(r"[a-z_]+(\.[^=/\\*?]+)*=", re.I)


def overrides_among(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are `key.sub=value`: such ones that name no file that exists."""
    return [argument for argument in arguments if _OVERRIDE.match(argument) and not Path(argument).exists()]


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
        if lines := [*self._impossible_engine(), *self._impossible_learner(), *self._impossible_problems()]:
            raise ValueError("\n".join(lines))
        return self

    def _impossible_engine(self) -> Iterator[str]:
        if self.objective.importance == "tois" and self.rollout.segments > 1:
            yield (
                f"objective.importance=tois needs rollout.segments=1 (found {self.rollout.segments}): with more "
                "segments a sample's tokens come from several versions; use pois or sais"
            )
        if self.objective.tis_cap and self.objective.importance != "pois":
            yield (
                f"objective.tis_cap={self.objective.tis_cap} goes with objective.importance=pois: the old policy of "
                f"{self.objective.importance} is the engine's already, its ratio would be counted twice"
            )
        truncated = self.rollout.top_p < 1 or self.rollout.top_k > 0
        if self.engine.kind == "vllm" and truncated and self.rollout.temperature != 1:
            yield (
                f"engine.kind=vllm with rollout.temperature={self.rollout.temperature} needs rollout.top_p=1 and "
                "rollout.top_k=0: vLLM gives log-probs either before temperature or after top-p and top-k, and "
                "training needs those between"
            )

    def _impossible_learner(self) -> Iterator[str]:
        flash, autocast = self.model.attention == "flash_attention_2", self.optim.autocast == "bfloat16"
        if autocast and self.model.dtype == "bfloat16":
            yield (
                "optim.autocast=bfloat16 goes with model.dtype=float32: weights stay float32 and are rounded for each "
                "product; those of model.dtype=bfloat16 are bfloat16 already"
            )
        if flash and not autocast and self.model.dtype == "float32":
            yield "model.attention=flash_attention_2 needs bfloat16: optim.autocast=bfloat16, or model.dtype=bfloat16"
        if self.optim.layout == "packed" and not flash and self.optim.microbatch_tokens > PACKED_MASK_TOKENS:
            yield (
                f"optim.layout=packed with model.attention={self.model.attention} needs optim.microbatch_tokens <= "
                f"{PACKED_MASK_TOKENS} (found {self.optim.microbatch_tokens}): its mask takes tokens x tokens bytes; "
                "take flash_attention_2, or optim.layout=padded, which needs no mask"
            )
        if self.optim.minibatches > self.rollout.prompts * self.rollout.group:
            yield (
                f"optim.minibatches={self.optim.minibatches} is more than rollout.prompts x rollout.group = "
                f"{self.rollout.prompts * self.rollout.group} samples a step; a mini-batch holds at least one"
            )
        soft, buffer = self.objective.overlong == "soft", self.objective.overlong_buffer
        if buffer >= self.rollout.max_tokens or (soft and not buffer):
            yield (
                f"objective.overlong_buffer must be less than rollout.max_tokens={self.rollout.max_tokens}, and "
                f"objective.overlong=soft needs 0 < objective.overlong_buffer < rollout.max_tokens; found {buffer}"
            )

    def _impossible_problems(self) -> Iterator[str]:
        try:
            sources = {"data": self.data, **({"eval.data": self.eval_data()} if self.eval.data else {})}
        except ValueError as error:
            yield str(error)
            return
        for key, data in sources.items():
            if self.reward.kind in ("countdown", "reasoning_gym") and data.kind != self.reward.kind:
                yield (
                    f"reward.kind={self.reward.kind} judges problems of {key}.kind={self.reward.kind} only, found "
                    f"{key}.kind={data.kind}; for files and the hub take reward.kind=math, numeric, exact, choice, "
                    "generative or function"
                )

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
            raise ValueError("\n".join(lines)) from None


def load(recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Read recipes left to right, then `key.sub=value` overrides. Raises UserError naming the file or the key."""
    return load_as(Config, recipes, overrides)


def load_as(section: type[S], recipes: Sequence[str | Path], overrides: Sequence[str] = ()) -> S:
    """As `load`, for another tree than that of a run."""
    tree: dict[str, Any] = {}
    for recipe in recipes:
        tree = _layered(tree, _read_toml(Path(recipe)))
    for override in overrides:
        tree = _layered(tree, parse_override(override))
    return _checked(section, tree, " + ".join([*map(str, recipes), *overrides]) or "the configuration")


def build(tree: Mapping[str, Any], source: str = "the configuration") -> Config:
    """Check a tree of plain values. Raises UserError with a line for each wrong key."""
    return _checked(Config, tree, source)


def _checked(section: type[S], tree: Mapping[str, Any], source: str) -> S:
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: expected a table of keys, found {_short(tree)}")
    lines = list(_unusable(tree))
    try:
        if not lines:
            return section.model_validate(tree)
    except ValidationError as error:
        lines = [line for e in error.errors() for line in _explain(dict(e), section=section).splitlines()]
    raise UserError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines))


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
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of a run") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, numbers or brackets without end
        raise UserError(f"{path}: not valid JSON ({error})") from None


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=value` as a tree. The value is read as TOML, and as a plain string when it is not TOML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{text!r}: expected key=value, for example optim.lr=3e-6")
    try:
        tree = tomllib.loads(f"value = {value}")
        parsed: Any = tree["value"] if len(tree) == 1 else value  # several lines are a text, not several keys
    except (ValueError, RecursionError):
        parsed = value
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a BOM
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe; recipes/ holds the ones that come with the project") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 text file ({error})") from None
    except OSError as error:
        raise UserError(f"{str(path)[:300]}: cannot be read as a UTF-8 text file ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # a name with a NUL; numbers or brackets without end
        raise UserError(f"{str(path)!r}: cannot be read as TOML ({error})") from None


def _layered(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and value  # an empty table replaces
        merged[key] = _layered(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _unusable(value: Any, key: str = "") -> Iterator[str]:
    """What TOML and the command line can say, but no path, no saved configuration and no 64-bit counter can hold."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _unusable(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unusable(inner, f"{key}.{number}")
    elif isinstance(value, str) and (where := bad_character(value)):
        yield f"{key}: {where}, found {_short(value)}"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield f"{key}: expected a number of at most 64 bits, found {_short(value)}"


def _explain(error: Mapping[str, Any], within: tuple[str, ...] = (), section: type[BaseModel] = Config) -> str:
    """One line for one of pydantic's errors in `section`, which stands at the key `within`."""
    loc = [part for part in error["loc"] if not str(part).endswith("]")]  # the branches of a union
    key = ".".join(str(part) for part in (*within, *loc))
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(error['loc'], section)}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "value_error":  # ours: names the key itself
        return f"{'.'.join(within)}: {error['ctx']['error']}" if within else str(error["ctx"]["error"])
    if error["type"] == "model_type":
        return f"{key}: expected a table of keys, found {_short(error['input'])}"
    return f"{key}: {error['msg']}, found {_short(error['input'])}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers beyond 4,300 digits
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else f"{text[:80]}..."


def _nearest(loc: Sequence[Any], top: type[BaseModel]) -> str:
    section: type[BaseModel] | None = top
    for part in loc[:-1]:
        inner = section.model_fields[part].annotation if section and part in section.model_fields else None
        section = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    if section is None:
        return ""
    near = get_close_matches(str(loc[-1]), section.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else f"; the keys here are {', '.join(section.model_fields)}"
