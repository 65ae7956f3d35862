"""Rewards by verifiable answers: 1 if the predicted answer is equivalent to the reference, else 0 (section 3.3)."""

from __future__ import annotations

from typing import Literal

from ulorl.rewards.base import Reward
from ulorl.rewards.judge import SECONDS

__all__ = ["Reward", "make_reward"]


def make_reward(
    kind: Literal["math", "reasoning_gym", "countdown", "function"], function: str = "", timeout: float = SECONDS
) -> Reward:
    """The reward of `reward.kind`; `timeout` seconds an answer. Raises UserError when an extra is missing or `function`
    cannot be used."""
    from ulorl.rewards import rules, tasks

    if kind == "math":
        return rules.MathReward(timeout)
    if kind == "reasoning_gym":
        return tasks.ReasoningGymReward(timeout)
    if kind == "countdown":
        from ulorl.tiny import task

        return task.score
    return tasks.FunctionReward(function, timeout)
