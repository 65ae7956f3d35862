"""avg@k on held-out problems (section 4.1 takes k = 32): each problem answered k times, accuracy averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ulorl.algorithm import SampleScorer
from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.intervals import Interval, mean_share
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.rng import Stream, sample_seed
from ulorl.types import Finish, Prompted, Request, Sample, Sampling, Scored, Segment, Status, Tokens


@dataclass(frozen=True)
class EvaluationSettings:
    """How held-out problems are answered."""

    samples: int  # k: answers to each problem
    sampling: Sampling
    max_tokens: int  # longest output
    seed: int


@dataclass(frozen=True)
class Evaluation:
    """The answers to held-out problems, and what they amount to."""

    by_problem: tuple[float | None, ...]  # share of right answers among the scored ones; None: none was scored
    samples: int  # k
    mean_length: float  # output tokens
    truncated: float  # share of answers cut at the length limit
    scored: tuple[Scored, ...]
    faults: int = 0  # of the engine, whose requests were decoded again

    @property
    def unscored(self) -> int:
        """The number of answers that the reward failed to score: they do not count in the accuracy."""
        return sum(answer.reward is None for answer in self.scored)

    @property
    def no_answer(self) -> int:
        """The number of outputs without an answer; they are wrong."""
        return sum(answer.answer is None for answer in self.scored)

    @property
    def shares(self) -> list[float]:
        """The share of right answers of each problem with a scored answer."""
        return [share for share in self.by_problem if share is not None]

    @property
    def accuracy(self) -> float:
        """avg@k: the mean over problems of the share of right answers; NaN without a scored answer."""
        return float(np.mean(self.shares)) if self.shares else float("nan")

    @property
    def stderr(self) -> float:
        """Standard error of the accuracy over problems: answers to one problem are not independent, so problems are
        the unit. NaN with one problem."""
        n = len(self.shares)
        return float(np.std(self.shares, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def interval(self) -> Interval | None:
        """The accuracy with its 95% interval over problems; None without a scored answer."""
        return mean_share(self.shares, len(self.scored) - self.unscored)


def evaluate(
    engine: Engine,
    scorer: SampleScorer,
    problems: Sequence[Prompted],
    settings: EvaluationSettings,
    *,
    on_answer: Callable[[], None] = lambda: None,
    cancel: CancelToken = NEVER,
) -> Evaluation:
    """Answer each problem `settings.samples` times with the engine's present weights, and score the answers.

    The draws depend on (seed, problem index, sample index) only, so that evaluations of several versions are paired.
    on_answer: called when an answer is decoded. Raises RuntimeError when the engine has other requests pending, and
    Cancelled.
    """
    if engine.pending:
        raise RuntimeError(f"evaluation needs an idle engine, {engine.pending} requests are pending")
    requests, faults = list(_requests(problems, settings)), engine.stats.faults
    judged: dict[int, Future[Scored]] = {}
    for segment in rollout(engine, requests, cancel):
        index = segment.sample_id // settings.samples
        problem, prompt = problems[index]
        judged[segment.sample_id] = scorer.submit(problem, _sample(segment, index, prompt))
        on_answer()
    answers = tuple(scorer.wait([judged[request.sample_id] for request in requests], cancel))
    return Evaluation(
        by_problem=_shares(answers, settings.samples),
        samples=settings.samples,
        mean_length=float(np.mean([len(answer.sample) for answer in answers])),
        truncated=float(np.mean([answer.sample.status is Status.TRUNCATED for answer in answers])),
        scored=answers,
        faults=engine.stats.faults - faults,
    )


def _requests(problems: Sequence[Prompted], settings: EvaluationSettings) -> Iterator[Request]:
    """Yield k requests for each problem; the sample ids count from 0."""
    prompts = [prompt for _, prompt in problems for _ in range(settings.samples)]
    for id, prompt in enumerate(prompts):
        seed = sample_seed(settings.seed, id, Stream.EVALUATION)
        yield Request(id, prompt, len(prompt), settings.max_tokens, settings.sampling, seed)


def _sample(segment: Segment, index: int, prompt: Tokens) -> Sample:
    status = Status.COMPLETE if segment.finish is Finish.EOS else Status.TRUNCATED
    return Sample(segment.sample_id, index, prompt, (segment,), status)


def _shares(answers: Sequence[Scored], samples: int) -> tuple[float | None, ...]:
    """Return each problem's share of right answers among the scored ones; None where none was scored."""
    by_problem = [answers[i : i + samples] for i in range(0, len(answers), samples)]
    rewards = [[answer.reward for answer in of_one if answer.reward is not None] for of_one in by_problem]
    return tuple(float(np.mean(of_one)) if of_one else None for of_one in rewards)
