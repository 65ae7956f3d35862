"""The generative verifier as a reward (section 3.3): a model says whether an answer is equivalent to the reference."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from ulorl.answers.extraction import PROSE, locate
from ulorl.cancellation import NEVER, CancelToken
from ulorl.config.reward_config import GenerativeRewardConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.reward import Reward, Verdict, completed, wait_for_verdict
from ulorl.rewards.rules import compare_by_rules
from ulorl.rewards.verdict_policy import AnswerPair, PairVerdict, refuse
from ulorl.rewards.verifier import KEY, Verifier
from ulorl.types import Problem


class GenerativeReward(Reward):
    """1.0 when the verifier finds the output's answer equivalent to `problem.answer`. An output without an answer is
    wrong, and so is an answer of more than `max_answer_chars` characters: the model is not asked."""

    def __init__(self, settings: GenerativeRewardConfig, cache: Path | None = None) -> None:
        """cache: where verdicts are kept, unless `settings.verifier.cache` says where. Raises UserError as
        `Verifier`."""
        own = Path(settings.verifier.cache) if settings.verifier.cache else None
        if own and not own.parent.is_dir():
            raise UserError(
                f"{KEY}.cache={own}: there is no folder {own.parent}",
                code=ErrorCode.CACHE_UNUSABLE,
                file=own,
                key=f"{KEY}.cache",
            )
        self._answer, self._max_chars = settings.answer, settings.verifier.max_answer_chars
        self._verifier = Verifier(
            settings.verifier,
            retries=settings.retries,
            cache=own or cache,
            rules=partial(compare_by_rules, timeout=settings.timeout),
        )
        self._too_long = 0

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output, and wait for its verdict."""
        return wait_for_verdict(self, self.submit(problem, text))

    def submit(self, problem: Problem, text: str) -> Future[Verdict]:
        """Begin to judge one output, and return the future of its verdict."""
        found = locate(text, self._answer)
        searched = ", ".join(self._answer.find or PROSE)
        refusal = refuse(found, problem.answer, searched=searched, max_chars=self._max_chars)
        if refusal or found is None:
            assert refusal  # `refuse` refuses what was not found
            self._too_long += refusal.too_long
            return completed(refusal.verdict)
        verdict, (answer, place) = Future[Verdict](), (found.answer, found.place)

        def judged(of_pair: Future[PairVerdict]) -> None:
            if (error := of_pair.exception()) is not None:
                verdict.set_exception(error)
            else:
                said = of_pair.result()
                verdict.set_result(Verdict(float(said.equivalent), answer, place, said.reason))

        self._verifier.submit(AnswerPair(problem.prompt, problem.answer, answer)).add_done_callback(judged)
        return verdict

    def run_pending(self, future: Future[Verdict], cancel: CancelToken = NEVER) -> None:
        """Ask a verifier in this process about all that was submitted, in one batch."""
        if not future.done():
            self._verifier.run_pending(cancel)

    def drop_pending(self) -> None:
        """Give up the verdicts that have not been asked for yet."""
        self._verifier.drop_pending()

    def metrics(self) -> Mapping[str, float | int | None]:
        """Return the verifier's counts since the last call."""
        too_long, self._too_long = self._too_long, 0
        return {**self._verifier.take_tally().metrics(), "verifier/too_long": too_long}
