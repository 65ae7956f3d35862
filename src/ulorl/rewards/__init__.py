"""Rewards by verifiable answers: 1 if the predicted answer is equivalent to the reference, else 0 (section 3.3)."""

from __future__ import annotations

from ulorl import sections
from ulorl.rewards.base import Reward, Verdict

__all__ = ["Reward", "Verdict", "make_reward"]


def make_reward(settings: sections.Reward) -> Reward:
    """The reward of `reward.kind`. Raises UserError when an extra is missing or a setting cannot be used."""
    from ulorl.rewards import rules, tasks

    match settings.kind:
        case "math":
            return rules.MathReward(settings.timeout)
        case "reasoning_gym":
            return tasks.ReasoningGymReward(settings.timeout)
        case "countdown":
            return tasks.CountdownReward()
        case "function":
            return tasks.FunctionReward(settings.function, settings.timeout)
