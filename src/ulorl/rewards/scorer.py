"""From a finished sample to its reward: decode, then ask the reward, again if it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PreTrainedTokenizerBase

from ulorl.errors import UserError
from ulorl.rewards.reward import Reward, Verdict, judged
from ulorl.types import Poll, Problem, Sample, Scored, Status


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
        self._unscored = 0  # in a row; one failure that several samples share counts once
        self._last: Exception | None = None

    def __call__(self, problem: Problem, sample: Sample) -> Callable[[Poll], Scored]:
        """Begin to judge; what it returns waits for the verdict."""
        text = str(self._tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True))
        if sample.status is Status.TRUNCATED:
            return lambda _: Scored(sample, 0.0, text)
        verdict = self._reward.begin(problem, text)
        return lambda poll: self._scored(problem, sample, text, verdict, poll)

    def metrics(self) -> Mapping[str, float | int | None]:
        """The reward's own numbers since the last call."""
        return self._reward.metrics()

    def _scored(
        self, problem: Problem, sample: Sample, text: str, begun: Callable[[Poll], Verdict], poll: Poll
    ) -> Scored:
        verdict, error = judged(self._reward, problem, text, begun, poll, retries=self._retries, pause=self._pause)
        if verdict is not None:
            self._unscored, self._last = 0, None
            return Scored(sample, verdict.reward, text, answer=verdict.answer)
        self._unscored += error is not self._last
        self._last, told = error, f"{type(error).__name__}: {error}"
        if self._unscored >= self._max_unscored:
            raise UserError(
                f"the reward failed for {self._unscored} samples in a row (reward.max_unscored), at last for problem "
                f"{problem.id} with: {told}{self._advice}"
            )
        return Scored(sample, None, text, told)
