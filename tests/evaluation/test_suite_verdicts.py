"""The verdicts of the suites' reward equal those of math-verify alone, on graded outputs of other projects."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from paths import SHARED
from ulorl.answers.extraction import last_boxed
from ulorl.config.reward_config import AnswerConfig, MathRewardConfig
from ulorl.evaluation.suites import find_suite
from ulorl.rewards.factory import make_reward
from ulorl.types import Problem

REWARD = make_reward(MathRewardConfig.model_validate(find_suite("math500").reward))


def lines(name: str, every: int) -> Iterator[dict[str, object]]:
    path = SHARED / "verifier" / name
    if not path.exists():
        pytest.skip(f"the shared data file verifier/{name} is not on this machine")
    return map(json.loads, path.read_text(encoding="utf-8").splitlines()[::every])


def by_math_verify(reference: str, output: str) -> float:
    """What math-verify says without anything of ours: its own search in the whole output, its own comparison."""
    configs = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    gold = parse(f"\\boxed{{{reference}}}", [LatexExtractionConfig()], parsing_timeout=None)
    return float(verify(gold, parse(output, configs, parsing_timeout=None), timeout_seconds=None))


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_qwens_outputs(every: int) -> None:
    """800 outputs of a model to problems of MATH."""
    for row in lines("qwen25math_math_cot_100.jsonl", every):
        for output in row["code"]:  # type: ignore[attr-defined]
            reference = str(row["gt"])
            assert REWARD(Problem("p", "?", reference), output).reward == by_math_verify(reference, output), output


@pytest.mark.parametrize("every", [80, pytest.param(8, marks=pytest.mark.slow)])
def test_solutions_of_gsm8k(every: int) -> None:
    """Four models' solutions."""
    for row in lines("gsm8k_example_model_solutions.jsonl", every):
        reference = str(row["ground_truth"]).rpartition("A:")[2].strip()
        for solution in (value["solution"] for value in row.values() if isinstance(value, dict)):
            assert REWARD(Problem("p", "?", reference), solution).reward == by_math_verify(reference, solution), (
                solution
            )


@pytest.mark.slow
def test_areals_outputs() -> None:
    """160 outputs; 158 verdicts are equal. The other two outputs box a sentence ("There is no extra taler ..."): the
    answer is wrong, as AReaL graded it, but math-verify finds no value in the box and takes a 25 from the text before.
    `reward.answer.find=["math_verify"]` does the same."""
    theirs = make_reward(MathRewardConfig(answer=AnswerConfig(find=("math_verify",))))
    against = []
    for row in lines("areal_math_answers_sample_cases.jsonl", 1):
        reference = last_boxed(row["solutions"][0]) or ""  # type: ignore[index]
        for output, graded in zip(row["generateds"], row["rewards"], strict=True):  # type: ignore[call-overload]
            problem, expected = Problem("p", "?", reference), by_math_verify(reference, output)
            assert theirs(problem, output).reward == expected
            if REWARD(problem, output).reward != expected:
                against.append((reference, expected, graded > 0, "taler" in (last_boxed(output) or "")))
    assert against == [("25", 1.0, False, True)] * 2
