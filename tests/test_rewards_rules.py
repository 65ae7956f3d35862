"""The mathematical reward: which answer counts, what is equal, what cannot hang, and agreement with labelled data."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ulorl.rewards import make_reward
from ulorl.rewards.base import RewardError
from ulorl.rewards.judge import Judge
from ulorl.rewards.worker import last_boxed
from ulorl.sections import Reward
from ulorl.types import Problem

VERIFIER = Path(__file__).parents[1] / "../shared/data/verifier"
reward = make_reward(Reward(kind="math"))


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        # which answer counts
        ("12", "7 + 5 = 12.", 1),
        ("12", "7 + 5 = 13.", 0),
        ("12", "The answer is **12**", 1),
        ("5", r"\boxed{3}, no: \boxed{5}", 1),
        ("5", r"The answer is \boxed{5}. Checked by adding 2 and 3, and by 4.", 1),
        ("4", r"The answer is \boxed{5}. Checked by adding 2 and 3, and by 4.", 0),
        ("12", "", 0),
        ("12", "I do not know.", 0),
        ("12", r"12, so \boxed{}", 0),
        # what is equal
        ("073", "73", 1),
        ("73", r"\boxed{073}", 1),
        (r"336^\circ", r"\boxed{336}", 1),
        ("336", r"\boxed{336^\circ}", 1),
        ("1,000", "it is 1000", 1),
        ("1000", r"\boxed{1,000}", 1),
        ("10{,}000", "10000", 1),
        (r"\frac12", "0.5", 1),
        ("1/3", "0.3333", 0),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", 1),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(\pi/2, 3)}", 0),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", 1),
        (r"\text{Evelyn}", r"\boxed{\text{Carla}}", 0),
    ],
)
def test_answers(reference: str, text: str, expected: int) -> None:
    assert reward(Problem("p", "?", reference), text).reward == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed {\boxed{5}}", "5"),
        (r"}} \fbox{x}", "x"),
        ("none", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "9" * 100_000,
        "(" * 50_000,
        "1+" * 50_000,
        "$" * 100_000,
        r"\boxed{" * 20_000,
        r"\frac{" * 5_000,
        r"\boxed{" + "9" * 20_000 + "}",
        "\\boxed{12\n}\x00",
    ],
    ids=range(8),
)
def test_long_garbage_is_judged(text: str) -> None:
    assert reward(Problem("p", "?", "7"), text).reward == 0


def test_an_answer_that_takes_for_ever_is_wrong() -> None:
    """Four seconds of the worker's CPU time, and the same worker goes on."""
    judge = Judge("math")
    assert judge.score(reference="7", text="7") == 1
    worker = judge._process
    assert judge.score(reference="7", text=r"\boxed{10^{10^{10}}}") == 0
    assert judge.score(reference="7", text="7") == 1
    assert judge._process is worker


def test_a_worker_that_does_not_answer_is_replaced() -> None:
    judge = Judge("math")
    assert judge.score(reference="7", text="7") == 1
    worker, judge._seconds = judge._process, 0.1
    with pytest.raises(RewardError, match=r"no answer within 0\.1 seconds"):
        judge.score(reference="7", text=r"\boxed{10^{10^{10}}}")
    judge._seconds = 120.0
    assert judge.score(reference="7", text="7") == 1
    assert judge._process is not worker


def test_any_thread_may_ask() -> None:
    """math-verify's own time limit is an alarm, which only a main thread can set."""
    found: Counter[float] = Counter()

    def ask() -> None:
        for n in range(10):
            found[reward(Problem("p", "?", "7"), f"the answer is {n}").reward] += 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0.0: 36, 1.0: 4}


def rows(name: str) -> list[dict[str, Any]]:
    path = VERIFIER / name
    if not path.exists():
        pytest.skip(f"the shared data file verifier/{name} is not on this machine")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_agreement_with_qwens_rule() -> None:
    """800 outputs: agreement on 799; the other is 10000 against 10{,}000, which that rule calls different."""
    against = []
    for row in rows("qwen25math_math_cot_100.jsonl"):
        problem = Problem("p", row["question"], str(row["gt"]))
        for text, verdict in zip(row["code"], row["score"], strict=True):
            if reward(problem, text).reward != float(verdict):
                against.append((row["gt"], last_boxed(text), verdict))
    assert against == [("10{,}000", "10000", False)]


def test_agreement_with_gsm8k_labels() -> None:
    """Four models' solutions, labelled right or wrong; every fourth problem, to be quick. All 5,276 agree."""
    for row in rows("gsm8k_example_model_solutions.jsonl")[::4]:
        problem = Problem("p", row["question"], row["ground_truth"].rpartition("A:")[2])
        solutions = [value for value in row.values() if isinstance(value, dict)]
        assert [reward(problem, s["solution"]).reward for s in solutions] == [float(s["is_correct"]) for s in solutions]
