"""avg@k by hand, with the scripted engine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scorers import ScorerOf
from ulorl.common.intervals import wilson
from ulorl.engines.scripted import ScriptedEngine
from ulorl.evaluation.avg_at_k import EvaluationSettings, evaluate
from ulorl.types import Problem, Sample, Sampling, Scored, Status

EOS = 0
PROMPT = np.array([9], np.int32)


class BeginsRight(ScorerOf):
    """Right when the output begins with the answer and was not cut."""

    def score(self, problem: Problem, sample: Sample) -> Scored:
        right = sample.status is Status.COMPLETE and str(sample.tokens[0]) == problem.answer
        return Scored(sample, float(right), "")


def test_avg_at_k_by_hand() -> None:
    """3 problems x 2 runs. Right answers 2 of 2, 1 of 2 (the other is cut at 4 tokens), 0 of 2: shares 1, 0.5, 0; mean
    0.5; sample std sqrt((0.25 + 0 + 0.25) / 2) = 0.5; standard error 0.5 / sqrt(3) = 0.288675. Lengths 2 2, 2 4, 3 1:
    mean 14 / 6."""
    scripts = {0: [1, EOS], 1: [1, EOS], 2: [2, EOS], 3: [2] * 9, 4: [7, 7, EOS], 5: [EOS]}
    problems = [(Problem(str(n), "?", str(n)), PROMPT) for n in (1, 2, 3)]
    engine = ScriptedEngine(scripts, eos_id=EOS)
    watched: list[int] = []
    result = evaluate(
        engine,
        BeginsRight(),
        problems,
        EvaluationSettings(samples=2, sampling=Sampling(), max_tokens=4, seed=0),
        on_answer=lambda: watched.append(1),
    )
    assert result.by_problem == (1.0, 0.5, 0.0)
    assert result.accuracy == 0.5
    assert result.stderr == pytest.approx(0.5 / math.sqrt(3))
    assert result.interval == wilson(0.5, 3)  # 0.25 / (0.25 / 3) = 3 answers, t makes fewer; the problems are 3
    assert result.mean_length == pytest.approx(14 / 6)
    assert result.truncated == pytest.approx(1 / 6)
    assert len(watched) == 6
    assert [s.sample.id for s in result.scored] == list(range(6))  # by problem and run, whatever ended first


def test_draws_are_paired_between_versions_and_apart_from_training() -> None:
    problems = [(Problem("1", "?", "1"), PROMPT)]
    seeds = []
    for version in (0, 5):
        engine = ScriptedEngine({0: [1, EOS], 1: [1, EOS]}, eos_id=EOS, version=version)
        evaluate(engine, BeginsRight(), problems, EvaluationSettings(2, Sampling(), 4, seed=3))
        seeds.append([r.seed for r in engine.requests])
    assert seeds[0] == seeds[1]
    from ulorl.rng import Stream, sample_seed

    others = [stream for stream in Stream if isinstance(stream.value, int) and stream is not Stream.EVALUATION]
    assert not set(seeds[0]) & {sample_seed(3, i, stream) for i in range(2) for stream in others}


def test_evaluation_refuses_a_busy_engine() -> None:
    from ulorl.types import Request

    engine = ScriptedEngine({0: [1, EOS]}, eos_id=EOS)
    engine.add(Request(0, PROMPT, 2, Sampling(), 0))
    with pytest.raises(RuntimeError, match="1 requests are pending"):
        evaluate(engine, BeginsRight(), [], EvaluationSettings(1, Sampling(), 4, seed=0))
