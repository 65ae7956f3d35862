"""Rewards by verifiable answers: 1 if the predicted answer is equivalent to the reference, else 0 (section 3.3)."""

from __future__ import annotations

from typing import Literal

from ulorl.rewards.base import Reward

__all__ = ["Reward", "make_reward"]


def make_reward(kind: Literal["math", "reasoning_gym", "countdown", "function"], function: str = "") -> Reward:
    """The reward of `reward.kind`. Raises UserError when an extra is missing or `function` cannot be used."""
    from ulorl.rewards import rules, tasks

    if kind == "math":
        return rules.MathReward()
    if kind == "reasoning_gym":
        return tasks.ReasoningGymReward()
    if kind == "countdown":
        from ulorl.tiny import task

        return task.score
    return tasks.user_function(function)
