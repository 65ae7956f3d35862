"""Turns a finished sample into its reward: decodes it, asks the reward, and asks again if that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ulorl.cancellation import NEVER, CancelToken
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.reward import Reward, Verdict, verdict_with_retries
from ulorl.types import Metrics, Problem, Sample, Scored, Status


@dataclass(frozen=True)
class _Submitted:
    """An output that the reward was given."""

    problem: Problem
    sample: Sample
    text: str
    verdict: Future[Verdict]


class Scorer:
    """Scores finished samples. A truncated sample is wrong, regardless of its text (section 3.5).

    A reward that fails is asked again `retries` times, `pause` seconds apart; then the sample is unscored. After
    `max_unscored` unscored samples in a row the reward does not work, and UserError is raised. resume: the command that
    resumes the run, for that message.
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
        self._advice = f": fix the reward, then resume with {resume}" if resume else ""
        self._submitted: dict[Future[Scored], _Submitted] = {}
        self._unscored = 0  # in a row; one failure that several samples share counts once
        self._last: Exception | None = None

    def submit(self, problem: Problem, sample: Sample) -> Future[Scored]:
        """Decode a finished sample, without special tokens, and begin to judge it. `wait` completes the future."""
        text, future = str(self._tokenizer.decode(sample.tokens.tolist(), skip_special_tokens=True)), Future[Scored]()
        if sample.status is Status.TRUNCATED:
            future.set_result(Scored(sample, 0.0, text))
        else:
            self._submitted[future] = _Submitted(problem, sample, text, self._reward.submit(problem, text))
        return future

    def wait(self, futures: Sequence[Future[Scored]], cancel: CancelToken = NEVER) -> Iterator[Scored]:
        """Yield the scored samples in the order of `futures`, which `submit` returned.

        Raises UserError when the reward does not work, and Cancelled; then the reward drops what it has not started.
        """
        try:
            for future in futures:
                if (submitted := self._submitted.pop(future, None)) is not None:
                    future.set_result(self._score(submitted, cancel))
                yield future.result()
        except UserError:
            self._reward.drop_pending()
            raise
        finally:
            for future in futures:
                self._submitted.pop(future, None)

    def drop(self) -> None:
        """Forget what was submitted and not waited for: the reward gives up what it has not started yet."""
        self._submitted.clear()
        self._reward.drop_pending()

    def metrics(self) -> Metrics:
        """Return the reward's own numbers since the last call."""
        return self._reward.metrics()

    def _score(self, submitted: _Submitted, cancel: CancelToken) -> Scored:
        problem, sample, text = submitted.problem, submitted.sample, submitted.text
        verdict, error = verdict_with_retries(
            self._reward, problem, text, submitted.verdict, cancel, retries=self._retries, pause=self._pause
        )
        if verdict is not None:
            self._unscored, self._last = 0, None
            return Scored(sample, verdict.reward, text, answer=verdict.answer)
        self._unscored += error is not self._last
        self._last, failure = error, f"{type(error).__name__}: {error}"
        if self._unscored >= self._max_unscored:
            raise UserError(
                f"the reward failed for {self._unscored} samples in a row (reward.max_unscored), at last for problem "
                f"{problem.id} with: {failure}{self._advice}",
                code=ErrorCode.REWARD_FAILED,
                key="reward.max_unscored",
                record=problem.id,
            ) from error
        return Scored(sample, None, text, failure)
