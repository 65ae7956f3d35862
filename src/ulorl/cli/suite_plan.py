"""Turns the command line of `ulorl eval --suite` into evaluations: every model, with every rope, on every suite."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulorl.config.loading import load_saved, load_sections, overrides_among
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.suites import Suite, find_suite
from ulorl.runs import run_folder
from ulorl.training.suite_evaluation import SuiteEvaluation

_KEPT = ("model", "engine", "backend", "seed")  # sections of a recipe or run that say how a model is evaluated
_ALLOWED = (*_KEPT, "data", "reward", "eval", "objective.mpt.tau", "optim.microbatch_tokens")
_ROPE = re.compile(r"(\d+(?:\.\d+)?)x(\d+)")
_PLAIN = {"type": "none", "factor": 0, "original_max_position_embeddings": 0}


def plan_evaluations(
    arguments: Sequence[str],
    suites: Sequence[str],
    lengths: Sequence[int],
    ropes: Sequence[str],
    out: Path,
    *,
    entropy: bool,
) -> list[SuiteEvaluation]:
    """Return the evaluations that the command line asks for, by model, rope and suite.

    arguments: run folders and models, TOML recipes, and overrides. suites: as `find_suite` takes them. lengths: output
    lengths; empty: eval.max_tokens. ropes: as `--rope` takes them; empty: model.rope. out: the folder for all of them.
    Raises UserError.
    """
    overrides = overrides_among(arguments)
    recipes = [a for a in arguments if a.endswith(".toml")]
    models = [a for a in arguments if a not in overrides and a not in recipes]
    _check_overrides(overrides)
    if not models and not recipes:
        raise _error("name a model folder, a hub name, ulorl:tiny, ulorl:tiny-maze, the folder of a run, or a recipe")
    found = [find_suite(suite) for suite in suites]
    planned = [
        _plan(model, rope, suite, lengths, recipes, overrides, out, entropy)
        for model in models or [""]
        for rope in ropes or [""]
        for suite in found
    ]
    folders = [evaluation.folder for evaluation in planned]
    if twice := [str(folder) for folder in folders if folders.count(folder) > 1]:
        raise _error(f"two of the evaluations would use the folder {twice[0]}; name each model and suite once")
    return planned


def _plan(
    model: str,
    rope: str,
    suite: Suite,
    lengths: Sequence[int],
    recipes: Sequence[str],
    overrides: Sequence[str],
    out: Path,
    entropy: bool,
) -> SuiteEvaluation:
    base, path = _base(model)
    top: dict[str, Any] = suite.sections()
    if path:
        top["model"] = {"path": path}
    late: dict[str, Any] = {}  # options, which count more than the sections of a recipe
    if rope:
        late["model"] = {"rope": _rope(rope)}
    if lengths:
        late["eval"] = {"max_tokens": max(lengths)}
    cfg = load_sections(base, recipes, [top, late], overrides, _KEPT)
    name = (model or cfg.model.path) + (f" YaRN {rope}" if rope and rope != "none" else "")
    folder = out / re.sub(r"[^\w.-]+", "_", name).strip("_.") / suite.name
    cfg = cfg.model_copy(update={"run": cfg.run.model_copy(update={"dir": str(folder)})})
    return SuiteEvaluation(name, suite.name, cfg, _lengths(cfg, lengths), folder, entropy)


def _base(model: str) -> tuple[dict[str, Any], str]:
    """Return the sections of a run that its evaluation needs, none for a model, and the path of the model."""
    run_dir = Path(model)
    if not model or not os.path.exists(run_dir / "config.json") or not run_folder.holds_run(run_dir):
        return {}, model
    saved = load_saved(run_dir / run_folder.CONFIG)
    tree = saved.model_dump()
    tree["model"].pop("lora")  # a trained model has its adapters merged in
    base = {name: tree[name] for name in _KEPT}
    longest = saved.eval.max_tokens or saved.rollout.max_tokens
    return {**base, "eval": {"max_tokens": longest}}, str(run_dir / "model")


def _lengths(cfg: Config, lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(set(lengths))) or (cfg.eval.max_tokens or cfg.rollout.max_tokens,)


def _rope(text: str) -> dict[str, Any]:
    """Return [model.rope] of the option, such as 1.5x95232. Raises UserError."""
    if text == "none":
        return dict(_PLAIN)
    found = _ROPE.fullmatch(text)
    if not found:
        raise _error(f"--rope {text}: expected none, or a factor and a length, for example 1.5x95232", "--rope")
    return {"type": "yarn", "factor": float(found[1]), "original_max_position_embeddings": int(found[2])}


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not any(key == allowed or key.startswith(allowed + ".") for allowed in _ALLOWED):
            raise _error(f"{key}: an evaluation of a suite has only keys of {', '.join(_ALLOWED)}", key)


def _error(text: str, key: str = "") -> UserError:
    return UserError(text, code=ErrorCode.COMMAND_LINE, key=key)
