"""From a finished sample to its reward: decode, then ask the reward."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from ulorl.rewards.base import Reward
from ulorl.types import Problem, Sample, Scored, Status


class Scorer:
    """Decodes the output without special tokens. A truncated sample is wrong, whatever it says (section 3.5)."""

    def __init__(self, reward: Reward, tokenizer: PreTrainedTokenizerBase) -> None:
        self._reward = reward
        self._tokenizer = tokenizer

    def __call__(self, problem: Problem, sample: Sample) -> Scored:
        text = str(self._tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True))
        reward = 0.0 if sample.status is Status.TRUNCATED else self._reward(problem, text)
        return Scored(sample, reward, text)
