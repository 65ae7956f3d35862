"""Rewards by verifiable answers: 1 if the predicted answer is equivalent to the reference, else 0 (section 3.3)."""

from __future__ import annotations

from pathlib import Path

from ulorl.config import reward_config as kinds
from ulorl.config.reward_config import RewardConfig
from ulorl.rewards.reward import Reward, Verdict

__all__ = ["Reward", "Verdict", "make_reward"]


def make_reward(settings: RewardConfig, cache: Path | None = None) -> Reward:
    """The reward of `reward.kind`. cache: a file for verdicts that are dear. Raises UserError when an extra is missing
    or a setting cannot be used."""
    from ulorl.rewards import rules, tasks

    match settings:
        case kinds.MathRewardConfig():
            return rules.MathReward(settings.answer, settings.timeout)
        case kinds.NumericRewardConfig():
            return rules.NumericReward(settings)
        case kinds.ExactRewardConfig():
            return rules.ExactReward(settings.answer)
        case kinds.ChoiceRewardConfig():
            return rules.ChoiceReward(settings.answer)
        case kinds.ReasoningGymRewardConfig():
            return tasks.ReasoningGymReward(settings.answer, settings.timeout)
        case kinds.CountdownRewardConfig():
            return tasks.CountdownReward()
        case kinds.FunctionRewardConfig():
            return tasks.FunctionReward(settings.function, settings.timeout)
        case kinds.GenerativeRewardConfig():
            from ulorl.rewards.generative import GenerativeReward

            return GenerativeReward(settings, cache)
