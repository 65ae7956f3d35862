"""The figures of an evaluation, from the answers to its problems: all that an evaluation, a run's metrics and the
tables of `ulorl eval` report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ulorl.answers.normalisation import exact_form
from ulorl.common.intervals import Interval, mean_share
from ulorl.evaluation.estimators import (
    Lengths,
    is_repetitive,
    length_distribution,
    maj_at_k,
    mean_with_error,
    pass_at_k,
)
from ulorl.types import Scored, Status, Tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer to one problem."""

    tokens: Tokens  # of the output, its EOS token included [T]
    truncated: bool  # cut at the length limit
    reward: float | None  # None: the reward failed
    answer: str | None  # that was judged; "": the reward does not say; None: the output has no answer


def answer_of(scored: Scored) -> Answer:
    """Return a scored sample as an answer."""
    truncated = scored.sample.status is Status.TRUNCATED
    return Answer(scored.sample.tokens, truncated, scored.reward, scored.answer)


def cut_at(answer: Answer, max_tokens: int) -> Answer:
    """Return the answer as it is under a lower length limit: a longer output is cut there, and wrong.

    Decoding never looks ahead, so these are the outputs that an evaluation with the lower limit draws.
    """
    if len(answer.tokens) <= max_tokens:
        return answer
    return replace(answer, tokens=answer.tokens[:max_tokens], truncated=True, reward=0.0, answer="")


@dataclass(frozen=True)
class Summary:
    """The figures of an evaluation with k answers to each problem. Rates are shares of all outputs. What cannot be
    computed is None, or NaN for the accuracy and its error."""

    samples: int  # k
    answers: int  # of all problems
    by_problem: tuple[float | None, ...]  # share of right answers among the scored ones; None: none was scored
    accuracy: float  # avg@k: the mean of these shares
    stderr: float  # of the accuracy, over problems
    pass_at: dict[int, float] = field(
        hash=False
    )  # pass@1, 2, 4, ... up to k; problems with fewer scored answers are left out
    majority: float | None  # maj@k; None: the reward names none of the answers that it judged
    lengths: Lengths  # of outputs, in tokens
    truncated: float
    no_answer: int  # outputs that ended without an answer; they are wrong
    repetitive: float
    unscored: int  # answers that the reward failed to score; they count in no accuracy

    @property
    def shares(self) -> list[float]:
        """The share of right answers of each problem with a scored answer."""
        return [share for share in self.by_problem if share is not None]

    @property
    def interval(self) -> Interval | None:
        """The accuracy with its 95% interval over problems; None without a scored answer."""
        return mean_share(self.shares, self.answers - self.unscored)


def summarise(answers: Sequence[Answer], samples: int) -> Summary:
    """Return the figures of an evaluation.

    answers: `samples` for each problem, problem after problem; at least one.
    """
    problems = [answers[i : i + samples] for i in range(0, len(answers), samples)]
    counts = right_and_scored(answers, samples)
    by_problem = tuple(right / scored if scored else None for right, scored in counts)
    accuracy, stderr = mean_with_error([share for share in by_problem if share is not None])
    voted = [_majority(of_one) for of_one, share in zip(problems, by_problem, strict=True) if share is not None]
    named = any(one.answer and not one.truncated and one.reward is not None for one in answers)
    return Summary(
        samples=samples,
        answers=len(answers),
        by_problem=by_problem,
        accuracy=accuracy,
        stderr=stderr,
        pass_at=_pass_at(counts, samples),
        majority=sum(voted) / len(voted) if named else None,
        lengths=length_distribution([len(one.tokens) for one in answers]),
        truncated=sum(one.truncated for one in answers) / len(answers),
        no_answer=sum(one.answer is None for one in answers),
        repetitive=sum(is_repetitive(one.tokens) for one in answers) / len(answers),
        unscored=sum(one.reward is None for one in answers),
    )


def right_and_scored(answers: Sequence[Answer], samples: int) -> list[tuple[int, int]]:
    """Return for each problem how many of its answers are right, and how many were scored.

    answers: `samples` for each problem, problem after problem.
    """
    rewards = [
        [one.reward for one in answers[i : i + samples] if one.reward is not None]
        for i in range(0, len(answers), samples)
    ]
    return [(sum(reward == 1.0 for reward in of_one), len(of_one)) for of_one in rewards]


def _pass_at(counts: Sequence[tuple[int, int]], samples: int) -> dict[int, float]:
    """Return pass@k for powers of two up to `samples`, and for `samples`, as means over problems."""
    found = dict[int, float]()
    for k in sorted({*(2**power for power in range(samples.bit_length())), samples}):
        values = [pass_at_k(n, c, k) for c, n in counts if n >= k]
        if values:
            found[k] = sum(values) / len(values)
    return found


def _majority(answers: Sequence[Answer]) -> float:
    """Return maj@k of one problem with a scored answer.

    An output without an answer, or one that was cut, does not vote. Wrong answers that the reward does not name vote
    as one answer, as those that cannot be extracted do in lm-evaluation-harness (its `[invalid]`): if some of them
    differ, maj@k is too low rather than too high.
    """
    scored = [one for one in answers if one.reward is not None]
    votes = [None if one.answer is None or one.truncated else exact_form(one.answer) for one in scored]
    return maj_at_k(votes, [one.reward == 1.0 for one in scored])
