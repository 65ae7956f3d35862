"""Makes the reward of a configuration: the one place that knows their kinds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ulorl.config import reward_config as kinds
from ulorl.config.reward_config import RewardConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.reward import Reward, Verdict

__all__ = ["Reward", "Verdict", "make_reward"]


def make_reward(settings: RewardConfig, cache: Path | None = None) -> Reward:
    """Return the reward of `reward.kind`. cache: a file for expensive verdicts.

    Raises UserError when an extra is missing or a setting cannot be used.
    """
    from ulorl.rewards import rules, tasks

    match settings:
        case kinds.MathRewardConfig():
            return rules.MathReward(settings.answer, settings.timeout, settings.workers)
        case kinds.NumericRewardConfig():
            return rules.NumericReward(
                settings.answer,
                settings.timeout,
                settings.workers,
                relative=settings.tolerance,
                absolute=settings.absolute_tolerance,
                strict=settings.units == "strict",
            )
        case kinds.ExactRewardConfig():
            return rules.ExactReward(settings.answer)
        case kinds.ChoiceRewardConfig():
            return rules.ChoiceReward(settings.answer)
        case kinds.ReasoningGymRewardConfig():
            return tasks.ReasoningGymReward(settings.answer, settings.timeout, settings.workers)
        case kinds.CountdownRewardConfig():
            return tasks.CountdownReward()
        case kinds.TaskRewardConfig():
            return tasks.TaskReward()
        case kinds.FunctionRewardConfig():
            return tasks.FunctionReward(settings.function, settings.timeout, settings.arguments, settings.workers)
        case kinds.GenerativeRewardConfig():
            return _generative(settings, cache)


def _generative(settings: kinds.GenerativeRewardConfig, cache: Path | None) -> Reward:
    from ulorl.rewards.generative_reward import GenerativeReward
    from ulorl.rewards.generative_verifier import KEY, Verifier
    from ulorl.rewards.rules import compare_by_rules

    own = Path(settings.verifier.cache) if settings.verifier.cache else None
    if own and not own.parent.is_dir():
        raise UserError(
            f"{KEY}.cache={own}: there is no folder {own.parent}",
            code=ErrorCode.CACHE_UNUSABLE,
            file=own,
            key=f"{KEY}.cache",
        )
    verifier = Verifier(
        settings.verifier,
        retries=settings.retries,
        cache=own or cache,
        rules=partial(compare_by_rules, timeout=settings.timeout),
    )
    return GenerativeReward(verifier, settings.answer, max_answer_chars=settings.verifier.max_answer_chars)
