"""Makes the reward of checked settings, once in each process, and judges outputs with its retries."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock, RLock

from ulorl.config.loading import load_class
from ulorl.config.reward_config import MathRewardConfig, RewardConfig, RewardRecipe
from ulorl.config.shipped_recipes import find
from ulorl.config.unions import variants_of
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.factory import make_reward
from ulorl.rewards.judged_cases import PAUSE, RULES, RulesReward
from ulorl.rewards.reward import Verdict, verdict_with_retries
from ulorl.types import Metrics, Problem

_log = logging.getLogger(__name__)


class Judge:
    """A reward in this process, and how many outputs in a row it failed to judge."""

    def __init__(self, settings: RewardConfig | None) -> None:
        """settings: None for `RULES`."""
        self._reward = make_reward(settings) if settings else RulesReward()
        limits = settings or MathRewardConfig()
        self._retries, self._max_unscored = limits.retries, limits.max_unscored
        self._last: Exception | None = None
        self._unscored = 0  # in a row; one failure that several outputs share counts once
        self._counting = Lock()  # guards the two fields above
        # verl calls from several threads. An engine in this process decodes for one of them at a time; threads that
        # wait for a server do not block each other.
        in_process = settings and settings.kind == "generative" and settings.verifier.kind == "engine"
        self._engine = Lock() if in_process else None

    def verdicts(self, outputs: Sequence[tuple[Problem, str]]) -> list[Verdict | None]:
        """Return the verdict of each output, None where the reward failed."""
        for problem, _ in outputs:
            self._reward.check(problem)
        if self._engine is None:
            return self._judged(outputs)
        with self._engine:
            return self._judged(outputs)

    def metrics(self) -> Metrics:
        """Return the reward's own numbers since the last call."""
        return self._reward.metrics()

    def _judged(self, outputs: Sequence[tuple[Problem, str]]) -> list[Verdict | None]:
        found = list[Verdict | None]()
        futures = [self._reward.submit(problem, text) for problem, text in outputs]
        for (problem, text), future in zip(outputs, futures, strict=True):
            verdict, error = verdict_with_retries(
                self._reward, problem, text, future, retries=self._retries, pause=PAUSE
            )
            self._count(error)
            found.append(verdict)
        return found

    def _count(self, error: Exception | None) -> None:
        with self._counting:
            if error is None:
                self._unscored = 0
            else:
                self._unscored += error is not self._last
            self._last, unscored = error, self._unscored
        if error is None:
            return
        failure = f"{type(error).__name__}: {error}"
        _log.warning("the reward failed for an output, which is unscored: %s", failure)
        if unscored >= self._max_unscored:
            raise UserError(
                f"the reward failed for {unscored} outputs in a row (max_unscored), at last with: {failure}",
                code=ErrorCode.REWARD_FAILED,
                key="reward.max_unscored",
            ) from error


_making: dict[int, RLock] = {}  # by process: a forked one must not wait for a thread that it does not have


def judge_of(resolved: str, process: int) -> Judge:
    """Return the reward of settings in this process, which its first caller makes. process: its id."""
    with _making.setdefault(process, RLock()):
        return _judge_of(resolved, process)


@lru_cache
def _judge_of(resolved: str, process: int) -> Judge:  # noqa: ARG001 - a forked process must not share connections
    table = json.loads(resolved)
    return Judge(None if table["kind"] == RULES else load_class(RewardConfig, [], table=table))


@lru_cache
def resolved_settings(reward: str, settings: str) -> str:
    """Return the checked settings of a reward as JSON. settings: keys of [reward], as JSON. Raises UserError."""
    table, kinds = json.loads(settings), variants_of(RewardConfig)
    if reward == RULES and not table:
        return json.dumps({"kind": RULES})
    if reward == RULES:
        message = f"{next(iter(table))}: {RULES} has no settings"
        raise UserError(message, code=ErrorCode.CONFIG_UNKNOWN_KEY, key=next(iter(table)))
    is_recipe = find(reward).is_file()
    if reward not in kinds and not is_recipe:
        raise UserError(
            f"{reward}: neither a kind of reward nor a recipe; the kinds are {', '.join(kinds)} and {RULES}",
            code=ErrorCode.CONFIG_BAD_VALUE,
            key="reward",
        )
    recipes, of_kind = ([], {"kind": reward}) if reward in kinds else ([reward], {})
    return load_class(RewardRecipe, recipes, table={"reward": {**of_kind, **table}}).reward.model_dump_json()
