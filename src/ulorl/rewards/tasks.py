"""Rewards of generated tasks and of users: reasoning-gym's scorer, and a function named in the recipe."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from ulorl.errors import UserError
from ulorl.rewards.base import Reward
from ulorl.rewards.judge import judge
from ulorl.types import Problem

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_NUMBER = re.compile(r"(?<![\d.])-?\d+(?:,\d{3})*(?:\.\d+)?")


class ReasoningGymReward:
    """1.0 when reasoning-gym gives the output's answer its full score, else 0.0: partial credit counts as wrong."""

    def __init__(self) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError('reward.kind=reasoning_gym needs reasoning-gym: pip install "ulorl[tasks]"')

    def __call__(self, problem: Problem, text: str) -> float:
        missing = {"task", "settings", "entry"} - problem.meta.keys()
        if missing:
            raise UserError(
                f"problem {problem.id}: reward.kind=reasoning_gym needs problems of data.kind=reasoning_gym "
                f"(its meta lacks {', '.join(sorted(missing))})"
            )
        answer = extract_task_answer(text, problem.answer)
        if not answer:
            return 0.0
        meta = problem.meta
        settings = json.dumps(meta["settings"], sort_keys=True)
        return judge("task").score(task=meta["task"], settings=settings, entry=meta["entry"], answer=answer)


def extract_task_answer(text: str, reference: str) -> str:
    """The answer in an output to a reasoning-gym problem, "" when there is none.

    The last `<answer>...</answer>` if there is one. Else, when the reference is a number, the last number of the text,
    its thousands separators dropped; else the last line that is not empty.
    """
    tagged = _TAGGED.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    if _NUMBER.fullmatch(reference):
        numbers = _NUMBER.findall(text.replace("−", "-"))
        return numbers[-1].replace(",", "") if numbers else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def user_function(path: str) -> Reward:
    """The reward `module:name`, called with the problem and the text; what it returns must be 0 or 1.

    Raises UserError when the module, the name or a callable is not there.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise UserError(f"reward.function={path}: expected module:name, for example my_rewards:exact")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # an installed command does not look into the folder it is started in
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise UserError(
            f"reward.function={path}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "its folder must be the working folder or on PYTHONPATH"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise UserError(f"reward.function={path}: {found.__name__} has no {part}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"reward.function={path}: is a {type(found).__name__}, not a function of (problem, text)")
    return _checked(path, found)


def _checked(path: str, function: Callable[[Problem, str], Any]) -> Reward:
    def reward(problem: Problem, text: str) -> float:
        try:
            value = function(problem, text)
        except Exception as error:
            raise UserError(
                f"reward.function={path}: raised {type(error).__name__}: {error}, for problem {problem.id}"
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number not in (0.0, 1.0):
            raise UserError(f"reward.function={path}: returned {value!r} for problem {problem.id}, expected 0 or 1")
        return number

    return reward
