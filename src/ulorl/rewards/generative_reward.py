"""The generative verifier as a reward (section 3.3): a model says whether an answer is equivalent to the reference."""

from __future__ import annotations

from concurrent.futures import Future

from ulorl.cancellation import NEVER, CancelToken
from ulorl.config.reward_config import AnswerConfig
from ulorl.rewards.answer_reward import AnswerReward
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.reward import Verdict, completed, wait_for_verdict
from ulorl.rewards.verdict_policy import AnswerPair, PairVerdict, refuse
from ulorl.types import Metrics, Problem


class GenerativeReward(AnswerReward):
    """1.0 when the verifier finds the output's answer equivalent to `problem.answer`, else 0.0.

    An output without an answer is wrong, and so is one whose answer is too long: the model is not asked.
    """

    retries_itself = True

    def __init__(self, verifier: Verifier, answer: AnswerConfig | None = None, *, max_answer_chars: int = 500) -> None:
        """answer: where the answer is looked for. max_answer_chars: a longer answer, which is also more than twice as
        long as the reference, is wrong."""
        super().__init__(answer)
        self._verifier, self._max_chars = verifier, max_answer_chars
        self._too_long = 0

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge one output, and wait for its verdict."""
        return wait_for_verdict(self, self.submit(problem, text))

    def submit(self, problem: Problem, text: str) -> Future[Verdict]:
        """Begin to judge one output, and return the future of its verdict."""
        found = self.locate(text)
        if found is None:
            return completed(self.without_answer())
        if refusal := refuse(found, problem.answer, max_chars=self._max_chars):
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

    def metrics(self) -> Metrics:
        """Return the verifier's counts since the last call."""
        too_long, self._too_long = self._too_long, 0
        return {**self._verifier.take_tally().metrics(), "verifier/too_long": too_long}
