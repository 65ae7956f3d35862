"""Our rewards as reward functions of TRL and as verl's compute_score: golden verdicts, columns, pickling, failures."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from fake_server import Judge, completion, serving
from refusals import refused
from ulorl.adapters import reward_judge
from ulorl.adapters.reward_functions import compute_score, reward_function
from ulorl.data.task_lookup import find_task
from ulorl.error_codes import ErrorCode
from ulorl.models.tiny import model_path
from ulorl.rewards.factory import make_reward


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def test_texts_and_conversations_get_the_same_rewards() -> None:
    r"""\boxed{0.5} is 1/2 and \boxed{0.6} is not; the last message has no answer. 72 is text after ####."""
    reward = reward_function("math", answer_column="solution", answer_after="####")
    assert reward.__name__ == "math_reward"
    texts = [r"So \boxed{0.5}.", r"So \boxed{0.6}.", "I do not know"]
    solution = ["0.5 + 0\n#### 1/2"] * 3
    assert reward(["How much?"] * 3, texts, solution=solution, completion_ids=[[1]] * 3) == [1.0, 0.0, 0.0]
    prompts = [[{"role": "system", "content": "Box it."}, {"role": "user", "content": "How much?"}]] * 3
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": texts[0]}]}]
    tool = [*said(""), {"role": "tool", "content": "0.5"}, *said(texts[0])]
    assert reward(prompts, [said(texts[0]), said(texts[1]), blocks], solution=solution) == [1.0, 0.0, 1.0]
    assert reward(prompts[:1], [tool], solution=solution[:1]) == [1.0]


def test_a_truncated_completion_is_wrong_where_eos_is_known() -> None:
    r"""\boxed{7} without EOS (2 or 3) may be the beginning of a longer output, and may be retracted."""
    reward, ids = reward_function("exact", eos_token_id=(2, 3)), [[9, 2], [9, 3], [2, 9], []]
    logged: dict[str, Any] = {}
    given = {"answer": ["7"] * 4, "completion_ids": ids, "log_metric": logged.__setitem__}
    assert reward(["?"] * 4, [r"\boxed{7}"] * 4, **given) == [1.0, 1.0, 0.0, 0.0]
    assert logged == {"reward/unscored": 0, "reward/no_answer": 0}
    with refused(ErrorCode.REWARD_PROBLEM, key="eos_token_id"):
        reward(["?"], ["7"], answer=["7"])


def test_a_row_without_a_reference_is_none_and_numbers_are_references() -> None:
    reward = reward_function("numeric", tolerance=0.01, name="close")
    assert reward.__name__ == "close"
    assert reward(["?"] * 3, [r"\boxed{100}"] * 3, answer=[99.5, None, 98]) == [1.0, None, 0.0]


@pytest.mark.parametrize(
    ("reward", "settings", "column", "output", "verdict"),
    [
        ("exact", {}, {"answer": "Paris"}, "The answer is paris.", 1.0),
        ("choice", {}, {"answer": "B", "options": ["3 cm", "7 cm"]}, r"\boxed{7 cm}", 1.0),
        ("rules", {}, {"answer": "27 cm"}, r"\boxed{0.27 m}", 1.0),
        ("math", {"answer": {"find": ["tags"]}}, {"answer": "7"}, r"<answer>7</answer> or \boxed{8}", 1.0),
        ("gsm8k", {}, {"answer": "72"}, r"\boxed{72}", 1.0),  # the recipe of the package
        ("gsm8k", {"kind": "exact"}, {"answer": "72"}, r"\boxed{72.0}", 0.0),
    ],
)
def test_every_kind_by_its_name(
    reward: str, settings: dict[str, Any], column: dict[str, Any], output: str, verdict: float
) -> None:
    columns = {name: [value] for name, value in column.items()}
    assert reward_function(reward, **settings)(["Which?"], [output], **columns) == [verdict]
    info = {"question": "Which?", **column}
    kwargs = MappingProxyType(settings)  # as OmegaConf's, no dict
    assert compute_score("source", output, column.get("answer"), info, reward=reward, **kwargs) == verdict


def test_tasks_and_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration of a task is right, and "1" is wrong. A user's function reads a column."""
    for name, kind in (("maze", "task"), ("countdown", "countdown")):
        task = find_task(name)
        (problem,) = task.problems(1, 0)
        right = task.demonstrate(problem, random.Random(0))
        reward = reward_function(kind, question_column="question")
        columns = {"question": [problem] * 2, "task": [name] * 2, "answer": [None, ""]}
        assert reward(["Solve: ..."] * 2, [right, "1"], **columns) == [1.0, 0.0]
        assert compute_score(name, right, None, {"question": problem, "task": name}, reward=kind) == 1.0

    assert reward_function("task")(["1 + 1?"], ["2"], task=[None], answer=["2"]) == [None]  # a row of another task

    (tmp_path / "my_rewards.py").write_text(
        "def short(problem, text, than):\n    return len(text) < problem.meta[than]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reward = reward_function("function", function="my_rewards:short", arguments={"than": "limit"}, columns=["limit"])
    assert reward(["?", "?"], ["abc", "abcdef"], limit=[5, 5]) == [1.0, 0.0]


def test_missing_columns_and_bad_values_are_named() -> None:
    reward = reward_function("math")
    with refused(ErrorCode.REWARD_PROBLEM, key="answer_column") as error:
        reward(["?"], ["7"], solution=["7"], trainer_state=None)
    assert "no column 'answer'" in str(error.value)
    assert "solution" in str(error.value)
    for value in ("", ["7"], float("nan"), True):
        with refused(ErrorCode.REWARD_PROBLEM, key="answer_column"):
            reward(["?"], ["7"], answer=[value])
        with refused(ErrorCode.REWARD_PROBLEM, key="answer_column"):
            compute_score("s", "7", value)
    with refused(ErrorCode.REWARD_PROBLEM, key="answer_column"):
        reward_function("math", answer_after="####")(["?"], ["7"], answer=["7"])
    with refused(ErrorCode.REWARD_PROBLEM, key="columns"):
        reward_function("task")(["?"], ["7"])
    with refused(ErrorCode.REWARD_PROBLEM, key="columns"):
        compute_score("maze", "7", None, {}, reward="task")


def test_bad_settings_are_refused_when_the_function_is_made() -> None:
    with refused(ErrorCode.CONFIG_UNKNOWN_KEY, key="reward.tolerence"):
        reward_function("numeric", tolerence=0.01)
    with refused(ErrorCode.CONFIG_BAD_VALUE, key="reward"):
        reward_function("maths")
    with refused(ErrorCode.CONFIG_UNKNOWN_KEY, key="tolerance"):
        reward_function("rules", tolerance=0.01)
    with refused(ErrorCode.REWARD_FUNCTION):
        reward_function("function", function="no_such_module:f")


def test_pools_of_processes_and_threads() -> None:
    """verl's `prime` manager calls from forked processes, its reward loop from threads. This process has judged
    already, so that the forked ones inherit a running sandbox, which they must not share."""
    answers = [str(n) for n in range(8)]
    reward = pickle.loads(pickle.dumps(reward_function("math")))
    assert reward.__name__ == "math_reward"
    assert reward(["?"] * 8, [f"\\boxed{{{n}.0}}" for n in answers], answer=answers) == [1.0] * 8
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, mp_context=fork) as processes, ThreadPoolExecutor(4) as threads:
        for pool in (processes, threads):
            asked = [pool.submit(compute_score, "s", f"\\boxed{{{n}.0}}", answers[i // 2]) for i, n in _twice(answers)]
            assert [future.result() for future in asked] == [1.0, 0.0] * 8
    assert compute_score("s", r"\boxed{3.0}", "3") == 1.0  # the sandbox of this process still answers


def _twice(answers: Sequence[str]) -> list[tuple[int, str]]:
    """Each answer, and then one that is too large by 10."""
    return list(enumerate(text for n in answers for text in (n, f"{int(n) + 10}")))


def test_first_calls_of_several_threads_make_one_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads arrive at the same time, and a reward takes 50 ms to make: a model of 4 GB would be loaded once."""
    made: list[Any] = []

    def slowly(settings: Any) -> Any:
        made.append(settings)
        time.sleep(0.05)
        return make_reward(settings)

    monkeypatch.setattr(reward_judge, "make_reward", slowly)
    together = threading.Barrier(4)

    def score(_: int) -> float:
        together.wait(30)
        return compute_score("s", r"\boxed{1.5}", "1.4", reward="numeric", tolerance=0.125)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(score, range(4))) == [1.0] * 4
    assert len(made) == 1


class Broken(Judge):
    """A verifier that never says yes or no."""

    def answer(self, said: str, time_of: int) -> None:  # noqa: ARG002
        self.send(200, completion("maybe"))


def test_unscored_outputs_are_none_for_trl_and_0_for_verl(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier that judges honestly; then one without readable verdicts, until `max_unscored` in a row stop it."""
    monkeypatch.setattr(reward_judge, "PAUSE", 0.0)
    logged: dict[str, Any] = {}
    log = {"log_extra": logged.__setitem__, "log_metric": logged.__setitem__}
    with serving(Judge) as (url, server):
        verifier = {"name": "m", "base_url": url}
        reward = reward_function("generative", verifier=verifier)
        texts = [r"\boxed{one half}", r"\boxed{one third}", ""]
        assert reward(["?"] * 3, texts, answer=["one half"] * 3, **log) == [1.0, 0.0, 0.0]
        assert logged["generative_reward/extracted"] == ["one half", "one third", None]
        assert {name: logged[name] for name in ("reward/unscored", "reward/no_answer", "verifier/judged")} == {
            "reward/unscored": 0, "reward/no_answer": 1, "verifier/judged": 2,
        }  # fmt: skip
        assert len(server.bodies) == 2
    with serving(Broken) as (url, _):
        settings: dict[str, Any] = {"retries": 0, "max_unscored": 3, "verifier": {"name": "m", "base_url": url}}
        reward = reward_function("generative", **settings)
        assert reward(["?"] * 2, [r"\boxed{1}", r"\boxed{2}"], answer=["3"] * 2, **log) == [None, None]
        assert logged["reward/unscored"] == 2
        score = partial(compute_score, "s", ground_truth="3", reward="generative", **settings)
        with refused(ErrorCode.REWARD_FAILED, key="reward.max_unscored"):
            score(r"\boxed{4}")  # the third in a row of the same reward
        caplog.clear()
        settings["max_unscored"] = 4
        with caplog.at_level(logging.WARNING, "ulorl.adapters"):
            assert partial(score, **settings)(r"\boxed{4}") == 0.0
        assert "unscored" in caplog.text


@pytest.mark.slow
def test_trl_trains_with_a_reward_of_ours(tmp_path: Path) -> None:
    """One step of GRPOTrainer with the tiny walker on two mazes: the reward, its metrics, and its columns in the table
    of completions."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    problems = find_task("maze").problems(2, 0, side=4, walls=2)
    args = GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, num_generations=4, max_completion_length=24,
        report_to="none", use_cpu=True, bf16=False, logging_steps=1, save_strategy="no",
    )  # fmt: skip
    trainer = GRPOTrainer(
        str(model_path("maze")),
        [reward_function("task")],
        args,
        train_dataset=Dataset.from_list([{"prompt": text, "task": "maze"} for text in problems]),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert 0 <= logged["rewards/task_reward/mean"] <= 1
    assert logged["reward/unscored"] == 0
    assert len(trainer._logs["extra"]["task_reward/extracted"]) == 8
