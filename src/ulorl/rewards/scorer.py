"""From a finished sample to its reward: decode, then ask the reward, again if it fails."""

from __future__ import annotations

import time

from transformers import PreTrainedTokenizerBase

from ulorl.errors import UserError
from ulorl.rewards.base import Reward
from ulorl.types import Problem, Sample, Scored, Status


class Scorer:
    """Decodes the output without special tokens. A truncated sample is wrong, whatever it says (section 3.5).

    A reward that fails is asked again `retries` times, `pause` seconds apart; then the sample is unscored. After
    `max_unscored` of them in a row, UserError: the reward does not work. `resume`: the command that goes on with the
    run.
    """

    def __init__(
        self,
        reward: Reward,
        tokenizer: PreTrainedTokenizerBase,
        *,
        retries: int = 2,
        max_unscored: int = 16,
        pause: float = 1.0,
        resume: str = "",
    ) -> None:
        self._reward, self._tokenizer = reward, tokenizer
        self._retries, self._max_unscored, self._pause = retries, max_unscored, pause
        self._advice = f": mend the reward, then go on with {resume}" if resume else ""
        self._unscored = 0  # in a row

    def __call__(self, problem: Problem, sample: Sample) -> Scored:
        text = str(self._tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True))
        if sample.status is Status.TRUNCATED:
            return Scored(sample, 0.0, text)
        reward, error = self._judged(problem, text)
        self._unscored = 0 if reward is not None else self._unscored + 1
        if self._unscored >= self._max_unscored:
            raise UserError(
                f"the reward failed for {self._unscored} samples in a row (reward.max_unscored), at last for problem "
                f"{problem.id} with: {error}{self._advice}"
            )
        return Scored(sample, reward, text, error)

    def _judged(self, problem: Problem, text: str) -> tuple[float | None, str]:
        """The reward, or None and what went wrong the last time."""
        told = ""
        for attempt in range(1 + self._retries):
            if attempt:
                time.sleep(self._pause)
            try:
                return self._reward(problem, text), ""
            except UserError:
                raise
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
        return None, told
