"""Suites by name, from local files, and the verdicts of their reward on graded outputs."""

from __future__ import annotations

import pytest

from paths import SHARED
from refusals import refused
from ulorl.config.loading import build
from ulorl.config.tree import Config
from ulorl.data.problems import load_problems
from ulorl.error_codes import ErrorCode
from ulorl.evaluation.suites import BOXED, NAMES, find_suite
from ulorl.rewards.factory import make_reward
from ulorl.types import Problem


def config(suite: str) -> Config:
    return build(find_suite(suite).sections())


@pytest.mark.parametrize("name", NAMES)
def test_every_suite_is_a_configuration_with_the_papers_sampling(name: str) -> None:
    cfg = config(name)
    sampling = (cfg.eval.samples, cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k)
    assert sampling == (32, 0.85, 0.95, 20)  # section 4.1
    assert cfg.eval_data() == cfg.data
    if cfg.data.kind == "hub":
        assert cfg.data.revision
        assert cfg.reward.kind == "math"


def test_a_local_file_has_the_fields_of_the_suite() -> None:
    data = config("gsm8k=some/test.jsonl").data
    assert data.kind == "files"
    assert (data.path, data.question, data.answer_after) == ("some/test.jsonl", "question", "####")
    own = config("some/own.jsonl")
    assert own.data.kind == "files"
    assert (own.data.template, own.reward.kind) == (BOXED, "math")
    assert find_suite("some/own.jsonl").name == "own"


@pytest.mark.parametrize("text", ["aime26", "aime25=", "countdown=file.jsonl", "some/own.txt"])
def test_mistakes_are_refused(text: str) -> None:
    with refused(ErrorCode.COMMAND_LINE, key="--suite"):
        find_suite(text)


@pytest.mark.parametrize(
    ("name", "file", "problems"),
    [("aime24", "aime24", 30), ("aime25", "aime25", 30), ("math500", "math500", 500), ("gsm8k", "gsm8k_test", 1319)],
)
def test_references_are_right_answers_to_their_own_problems(name: str, file: str, problems: int) -> None:
    """A boxed reference, and of AIME the plain number, is right: 025 and 25, 336 and 336^\\circ."""
    path = SHARED / "eval" / f"{file}.jsonl"
    if not path.exists():
        pytest.skip(f"the shared data file eval/{file}.jsonl is not on this machine")
    cfg = config(f"{name}={path}")
    found, reward = load_problems(cfg.data), make_reward(cfg.reward)
    assert len(found) == problems
    for problem in found if problems < 100 else found[::25]:
        assert _is_right(reward, problem, problem.answer), problem
        if name.startswith("aime"):
            assert _is_right(reward, problem, str(int(problem.answer.removesuffix("^\\circ")))), problem


def _is_right(reward: object, problem: Problem, answer: str) -> bool:
    return reward(problem, f"So it is $\\boxed{{{answer}}}$.").reward == 1.0  # type: ignore[operator]
