"""avg@k on held-out problems (section 4.1 takes k = 32): each problem answered k times, accuracy averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property

from ulorl.algorithm import SampleScorer
from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.intervals import Interval
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.evaluation.summary import Summary, answer_of, right_and_scored, summarise
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

    samples: int  # k
    scored: tuple[Scored, ...]  # k for each problem, problem after problem
    faults: int = 0  # of the engine, whose requests were decoded again

    @cached_property
    def summary(self) -> Summary:
        """All figures."""
        return summarise([answer_of(scored) for scored in self.scored], self.samples)

    @property
    def counts(self) -> list[tuple[int, int]]:
        """For each problem, how many of its answers are right, and how many were scored."""
        return right_and_scored([answer_of(scored) for scored in self.scored], self.samples)

    @property
    def by_problem(self) -> tuple[float | None, ...]:
        """The share of right answers to each problem, of those that were scored; None where none was."""
        return self.summary.by_problem

    @property
    def mean_length(self) -> float:
        """The mean number of output tokens."""
        return self.summary.lengths.mean

    @property
    def truncated(self) -> float:
        """The share of answers cut at the length limit."""
        return self.summary.truncated

    @property
    def unscored(self) -> int:
        """The number of answers that the reward failed to score: they do not count in the accuracy."""
        return self.summary.unscored

    @property
    def no_answer(self) -> int:
        """The number of outputs without an answer; they are wrong."""
        return self.summary.no_answer

    @property
    def shares(self) -> list[float]:
        """The share of right answers of each problem with a scored answer."""
        return self.summary.shares

    @property
    def accuracy(self) -> float:
        """avg@k: the mean over problems of the share of right answers; NaN without a scored answer."""
        return self.summary.accuracy

    @property
    def stderr(self) -> float:
        """Standard error of the accuracy over problems: answers to one problem are not independent, so problems are
        the unit. NaN with one problem."""
        return self.summary.stderr

    @property
    def interval(self) -> Interval | None:
        """The accuracy with its 95% interval over problems; None without a scored answer."""
        return self.summary.interval


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
    faults = engine.stats.faults
    scored = answer_problems(engine, scorer, problems, settings, on_answer=on_answer, cancel=cancel)
    return Evaluation(settings.samples, scored, engine.stats.faults - faults)


def answer_problems(
    engine: Engine,
    scorer: SampleScorer,
    problems: Sequence[Prompted],
    settings: EvaluationSettings,
    *,
    first: int = 0,
    on_answer: Callable[[], None] = lambda: None,
    cancel: CancelToken = NEVER,
) -> tuple[Scored, ...]:
    """Answer and score problems as `evaluate` does, and return the answers by problem and run.

    first: the index of the first of these problems in the evaluation that they are a part of, for the draws.
    """
    if engine.pending:
        raise RuntimeError(f"evaluation needs an idle engine, {engine.pending} requests are pending")
    requests = list(_requests(problems, settings, first))
    judged: dict[int, Future[Scored]] = {}
    for segment in rollout(engine, requests, cancel):
        index = segment.sample_id // settings.samples
        problem, prompt = problems[index - first]
        judged[segment.sample_id] = scorer.submit(problem, _sample(segment, index, prompt))
        on_answer()
    return tuple(scorer.wait([judged[request.sample_id] for request in requests], cancel))


def _requests(problems: Sequence[Prompted], settings: EvaluationSettings, first: int) -> Iterator[Request]:
    """Yield k requests for each problem; the sample ids count from k times `first`."""
    prompts = [prompt for _, prompt in problems for _ in range(settings.samples)]
    for id, prompt in enumerate(prompts, start=first * settings.samples):
        seed = sample_seed(settings.seed, id, Stream.EVALUATION)
        yield Request(id, prompt, settings.max_tokens, settings.sampling, seed)


def _sample(segment: Segment, index: int, prompt: Tokens) -> Sample:
    status = Status.COMPLETE if segment.finish is Finish.EOS else Status.TRUNCATED
    return Sample(segment.sample_id, index, prompt, (segment,), status)
