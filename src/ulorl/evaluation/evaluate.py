"""avg@k on held-out problems (section 4.1 takes k = 32): each problem answered k times, accuracy averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ulorl.algorithm import Scorer
from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.intervals import Interval, mean_share
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.rng import Stream, sample_seed
from ulorl.types import Finish, Problem, Request, Sample, Sampling, Scored, Status, Tokens


@dataclass(frozen=True)
class Evaluation:
    """`by_problem` is each problem's share of right answers among the scored ones, in the order of the problems; None
    where the reward failed for all of them."""

    by_problem: tuple[float | None, ...]
    samples: int  # k
    mean_length: float  # output tokens
    truncated: float  # share of answers cut at the length limit
    scored: tuple[Scored, ...]
    faults: int = 0  # of the engine; its requests were given out again

    @property
    def unscored(self) -> int:
        """Answers that the reward failed to score: no part of the accuracy, neither as right nor as wrong."""
        return sum(answer.reward is None for answer in self.scored)

    @property
    def no_answer(self) -> int:
        """Outputs that hold no answer; they are wrong."""
        return sum(answer.answer is None for answer in self.scored)

    @property
    def shares(self) -> list[float]:
        """Of the problems with a scored answer."""
        return [share for share in self.by_problem if share is not None]

    @property
    def accuracy(self) -> float:
        """avg@k: the mean over problems of the share of right answers; nan without a scored one."""
        return float(np.mean(self.shares)) if self.shares else float("nan")

    @property
    def stderr(self) -> float:
        """Standard error of the accuracy over problems: answers to one problem are not independent, so problems are
        the unit. With one problem it is unknown (nan)."""
        n = len(self.shares)
        return float(np.std(self.shares, ddof=1) / np.sqrt(n)) if n > 1 else float("nan")

    @property
    def interval(self) -> Interval | None:
        """The accuracy with its 95% interval over problems; None without a scored answer."""
        return mean_share(self.shares, len(self.scored) - self.unscored)


def evaluate(
    engine: Engine,
    scorer: Scorer,
    problems: Sequence[tuple[Problem, Tokens]],
    *,
    samples: int,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
    watch: Callable[[], None] = lambda: None,
    cancel: CancelToken = NEVER,
) -> Evaluation:
    """Answer each problem `samples` times with the engine's present weights.

    The draws depend on (seed, problem index, run) only, so that evaluations of several versions are paired.
    Raises RuntimeError when the engine has other work pending.
    """
    if engine.pending:
        raise RuntimeError(f"evaluation needs an idle engine, {engine.pending} requests are pending")
    requests = [
        Request(
            i * samples + run,
            prompt,
            len(prompt),
            max_tokens,
            sampling,
            sample_seed(seed, i * samples + run, Stream.EVALUATION),
        )
        for i, (_, prompt) in enumerate(problems)
        for run in range(samples)
    ]
    submitted: dict[int, Future[Scored]] = {}
    faults = engine.stats.faults
    for segment in rollout(engine, requests, cancel):
        index = segment.sample_id // samples
        problem, prompt = problems[index]
        status = Status.COMPLETE if segment.finish is Finish.EOS else Status.TRUNCATED
        sample = Sample(segment.sample_id, index, prompt, (segment,), status)
        submitted[segment.sample_id] = scorer.submit(problem, sample)
        watch()
    answers = list(scorer.wait([submitted[request.sample_id] for request in requests], cancel))
    rewards = [
        [a.reward for a in answers[i : i + samples] if a.reward is not None] for i in range(0, len(answers), samples)
    ]
    return Evaluation(
        by_problem=tuple(float(np.mean(of_problem)) if of_problem else None for of_problem in rewards),
        samples=samples,
        mean_length=float(np.mean([len(a.sample) for a in answers])),
        truncated=float(np.mean([a.sample.status is Status.TRUNCATED for a in answers])),
        scored=tuple(answers),
        faults=engine.stats.faults - faults,
    )
