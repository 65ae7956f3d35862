"""reasoning-gym's scorer, chain countdown and a user's function as rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refusals import refused
from ulorl.config.data_config import ReasoningGymDataConfig
from ulorl.config.reward_config import (
    AnswerConfig,
    CountdownRewardConfig,
    FunctionRewardConfig,
    ReasoningGymRewardConfig,
    TaskRewardConfig,
)
from ulorl.data.problems import load_problems
from ulorl.error_codes import ErrorCode
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Verdict
from ulorl.rewards.tasks import locate_task_answer
from ulorl.types import Problem


@pytest.mark.parametrize(
    ("text", "reference", "answer"),
    [
        ("<answer>3</answer> no, <answer>\n-4 </answer> 5", "-4", "-4"),
        ("7 + 5 = 12.", "12", "12"),
        ("5 - 9 = -4", "-4", "-4"),
        ("it is −4", "-4", "-4"),  # a typographic minus
        (r"So \boxed{-4}, as 5 - 9 says.", "-4", "-4"),
        (r"\boxed{1,234}", "1234", "1234"),
        ("<think> 7, <answer>8</answer></think>\n<answer>9</answer>", "9", "9"),
        ("<think> 7, <answer>8</answer>", "8", None),  # it never stopped thinking
        ("5-9", "-4", "9"),  # a minus between numbers is no sign
        ("about 1,234.5 in all", "2", "1234.5"),
        ("no number", "12", None),
        ("First a list.\n\n a, b \n", "a, b", "a, b"),
        ("", "a", None),
        ("<answer> </answer> 12", "12", None),
    ],
)
def test_where_the_answer_to_a_task_is_found(text: str, reference: str, answer: str | None) -> None:
    found = locate_task_answer(text, reference)
    assert (found and found.answer) == answer


def test_the_recipe_may_say_where_the_answer_is() -> None:
    settings = AnswerConfig(find=("tags",), tag="final")
    reward = make_reward(ReasoningGymRewardConfig(answer=settings))
    (problem,) = problems("chain_sum", 1)
    assert reward(problem, f"<final>{problem.answer}</final> 1") == Verdict(1.0, problem.answer)
    assert reward(problem, problem.answer) == Verdict(0.0, None)


def problems(task: str, size: int = 3, **settings: Any) -> list[Problem]:
    return load_problems(ReasoningGymDataConfig(task=task, size=size, settings=settings))


@pytest.mark.parametrize("task", ["chain_sum", "basic_arithmetic", "gcd", "word_sorting", "sudoku", "arc_agi"])
def test_reference_answers_score_one_and_others_zero(task: str) -> None:
    """arc_agi compares tuples: an entry that had been through JSON would not score."""
    reward = make_reward(ReasoningGymRewardConfig())
    for problem in problems(task):
        stored = Problem(problem.id, problem.prompt, problem.answer, json.loads(json.dumps(dict(problem.meta))))
        assert reward(stored, f"<answer>{problem.answer}</answer>").reward == 1
        assert reward(stored, f"<answer>{problem.answer}1</answer>").reward == 0
        assert reward(stored, "").reward == 0


def test_partial_credit_is_wrong() -> None:
    """chain_sum's scorer gives a part of the score to an answer that contains the right one."""
    reward = make_reward(ReasoningGymRewardConfig())
    (problem,) = problems("chain_sum", 1)
    assert reward(problem, f"<answer>it is {problem.answer}</answer>").reward == 0
    assert reward(problem, f"it is {problem.answer}").reward == 1


def test_a_task_without_reference_is_scored_by_its_rules() -> None:
    """graph_color has many right answers and gives none."""
    reward = make_reward(ReasoningGymRewardConfig())
    (problem,) = problems("graph_color", 1, min_num_vertices=3, max_num_vertices=3, num_colors=3)
    assert problem.answer == ""
    assert reward(problem, 'So: <answer>{"0": 1, "1": 2, "2": 3}</answer>').reward == 1
    assert reward(problem, "<answer>{not a colouring</answer>").reward == 0


def test_problems_of_another_kind_are_refused() -> None:
    with refused(ErrorCode.REWARD_PROBLEM, key="reward.kind", record="p1"):
        make_reward(ReasoningGymRewardConfig())(Problem("p1", "?", "1"), "1")


def test_the_checker_of_a_task_definition() -> None:
    reward = make_reward(TaskRewardConfig())
    maze = Problem("p", "3:0>8#4,5", meta={"task": "maze"})
    assert [reward(maze, text).reward for text in ("0D3D6R7R8", "0D3D6R7")] == [1.0, 0.0]
    reward.check(maze)
    with refused(ErrorCode.REWARD_PROBLEM, record="q", key="reward.kind"):
        reward.check(Problem("q", "3:0>8#4,5"))


def test_a_checker_must_return_a_bool(tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(
        "from ulorl.data.countdown import Countdown\n"
        "class Half(Countdown):\n"
        "    def check(self, problem, output):\n"
        "        return 0.5\n"
    )
    problem = Problem("p", "1,2,3>6", meta={"task": "half.py"})
    with refused(ErrorCode.REWARD_FUNCTION, record="p"):
        make_reward(TaskRewardConfig())(problem, "")


def test_countdown() -> None:
    reward = make_reward(CountdownRewardConfig())
    problem = Problem("c", "7,2,7,2>10\n", "10")
    assert reward(problem, "7-2=5+2=7+7=14,10>\n7+7=14-2=12-2=10,10").reward == 1
    assert reward(problem, "7-2=5+2=7+7=14,10>").reward == 0


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "ulorl_user_rewards.py").write_text(
        "class Exact:\n"
        "    @staticmethod\n"
        "    def score(problem, text):\n"
        "        return text == problem.answer\n"
        "def half(problem, text):\n"
        "    return 0.5\n"
        "def nothing(problem, text):\n"
        "    pass\n"
        "def lonely(text):\n"
        "    return 1\n"
        "def at_least(problem, text, length=1, count=()):\n"
        "    return len(text) >= length and all(part in text for part in count)\n"
        "def bit(problem, text):\n"
        "    return hash('a text') >> int(text) & 1\n"
        "table = {}\n",
        encoding="utf-8",
    )
    (tmp_path / "ulorl_broken_rewards.py").write_text("def f(:\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # the working folder is searched, as the recipe's author expects
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    return "ulorl_user_rewards"


def test_a_function_gets_the_same_hashes_in_every_process(functions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that goes through a set of texts would else depend on the process that judges."""
    monkeypatch.setenv("PYTHONHASHSEED", "random")
    found = []
    for _ in range(2):
        reward = make_reward(FunctionRewardConfig(function=f"{functions}:bit"))
        found.append([reward(Problem("p", "?"), str(place)).reward for place in range(32)])
    assert found[0] == found[1]


def test_user_function(functions: str) -> None:
    reward = make_reward(FunctionRewardConfig(function=f"{functions}:Exact.score"))
    assert reward(Problem("p", "?", "7"), "7").reward == 1.0
    assert reward(Problem("p", "?", "7"), "8").reward == 0.0


@pytest.mark.parametrize(
    "path",
    [
        "half", "no_such_module:f", "ulorl_broken_rewards:f", "ulorl_user_rewards:exact", "ulorl_user_rewards:table",
        "ulorl_user_rewards:lonely",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("functions")
def test_a_function_that_cannot_be_used_is_refused(path: str) -> None:
    """No colon, no module, a module that does not compile, no such name, no function, one argument only."""
    with refused(ErrorCode.REWARD_FUNCTION, key="reward.function") as caught:
        make_reward(FunctionRewardConfig(function=path))
    assert path in str(caught.value)


def test_keyword_arguments_of_the_recipe(functions: str) -> None:
    path = f"{functions}:at_least"
    reward = make_reward(FunctionRewardConfig(function=path, arguments={"length": 3, "count": ["a", "b"]}))
    assert [reward(Problem("p", "?", "7"), text).reward for text in ("ab", "abc", "b---")] == [0.0, 1.0, 0.0]
    assert make_reward(FunctionRewardConfig(function=path))(Problem("p", "?", "7"), "x").reward == 1.0
    with refused(ErrorCode.REWARD_FUNCTION, key="reward.function") as caught:
        make_reward(FunctionRewardConfig(function=path, arguments={"lenght": 3}))
    assert "unexpected keyword argument 'lenght'" in str(caught.value)


@pytest.mark.parametrize("name", ["half", "nothing"])
def test_a_value_that_is_no_reward_is_refused(functions: str, name: str) -> None:
    reward = make_reward(FunctionRewardConfig(function=f"{functions}:{name}"))
    with refused(ErrorCode.REWARD_FUNCTION, key="reward.function"):
        reward(Problem("p1", "?", "7"), "7")
