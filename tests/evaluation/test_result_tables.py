"""The tables of several results, character by character."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from ulorl.evaluation.result_tables import (
    SuiteResult,
    accuracy_table,
    all_tables,
    as_json,
    difference_lines,
    figures_table,
)
from ulorl.evaluation.summary import Answer, summarise
from ulorl.evaluation.token_entropy import EntropyFigures


def result(model: str, suite: str, max_tokens: int, *right: str, entropy: bool = False) -> SuiteResult:
    """right: a text such as 10 for each problem, with a digit for each answer; answers are 4 tokens long."""
    tokens = np.arange(4, dtype=np.int32)
    answers = [Answer(tokens, digit == "0", float(digit), digit) for of_one in right for digit in of_one]
    figures = EntropyFigures(0.25, 0.5, 0.125) if entropy else None
    summary, problems = summarise(answers, len(right[0])), tuple("abcdef"[: len(right)])
    return SuiteResult(model, suite, max_tokens, f"avg@{len(right[0])}", summary, figures, problems)


RESULTS = [
    result("base", "aime25", 32, "11", "10", "00"),
    result("base", "math500", 32, "11", "10"),
    result("ours", "aime25", 32, "11", "11", "10"),
    result("ours", "aime25", 64, "11", "11", "11"),
]


def test_accuracies_stand_as_in_table_3() -> None:
    """Shares 1, 1/2, 0: 50 ± 100 x 0.288675. Shares 1, 1/2: 75 ± 100 x 0.353553 / sqrt(2). 1, 1, 1/2: 83.3 ± 16.7."""
    assert accuracy_table(RESULTS).splitlines() == [
        "| model | output length | aime25, avg@2 | math500, avg@2 |",
        "|---|--:|--:|--:|",
        "| base | 32 | 50.0 ± 28.9 | 75.0 ± 25.0 |",
        "| ours | 32 | 83.3 ± 16.7 |  |",
        "| ours | 64 | 100.0 ± 0.0 |  |",
    ]


def test_differences_are_with_the_first_model_at_the_same_length() -> None:
    """1 - 1, 1 - 1/2, 1/2 - 0: mean 1/3, s = sqrt((1/9 + 2 / 36) / 2) = 0.288675, t(2) = 4.302653:
    33.3 ± 100 x 4.302653 x 0.288675 / sqrt(3) = 71.7 points (4.27 in place of 4.30: `student` is approximate)."""
    (line,) = difference_lines(RESULTS)
    assert line.startswith("aime25, 32 tokens: ours - base = +33.3 points (95%: -3")
    assert line.endswith("paired over 3 problems)")
    (unresolved,) = difference_lines([RESULTS[0], again()])
    assert unresolved.endswith("the same on every problem, or fewer than two problems are paired")


def test_models_with_other_problems_are_paired_on_those_that_both_have() -> None:
    """Of the first model b is left out, of the second a. On c, d and e: 1 - 1, 1 - 1/2, 1/2 - 0."""
    first = replace(result("base", "aime25", 32, "00", "11", "10", "00"), problems=tuple("acde"))
    second = replace(result("ours", "aime25", 32, "11", "11", "11", "10"), problems=tuple("bcde"))
    (line,) = difference_lines([first, second])
    (same,) = difference_lines([RESULTS[0], RESULTS[2]])
    assert line == f"{same}; ours has 4 problems and base 4, of which 3 are the same"
    (found,) = as_json([first, second])["differences"]
    assert (found["common_problems"], found["difference"]["problems"]) == (3, 3)
    (line,) = difference_lines([first, replace(second, problems=tuple("wxyz"))])
    assert line.endswith("; ours has 4 problems and base 4, of which 0 are the same")


def again() -> SuiteResult:
    return result("again", "aime25", 32, "11", "10", "00")


def test_every_figure_of_one_result() -> None:
    rows = dict(
        line.strip("| ").split(" | ")
        for line in figures_table([result("m", "s", 8, "11", "10", entropy=True)]).splitlines()[2:]
    )
    assert rows == {
        "problems": "2",
        "avg@2 ± standard error": "75.0 ± 25.0",
        "95% interval": rows["95% interval"],
        "pass@2": "100.0%",
        "maj@2": "100.0%",  # of the second problem the cut output does not vote
        "output tokens: mean": "4",
        "output tokens: p50 / p90 / p99": "4 / 4 / 4",
        "truncated": "25.0%",
        "no answer": "0.0%",
        "repetitive": "0.0%",
        "mean token entropy (nats)": "0.250",
        "MPTs, of all tokens": "50.0%",
        "entropy of MPTs, of all": "12.50%",
    }


def test_json_holds_everything_and_no_nan() -> None:
    found = json.loads(json.dumps(as_json([*RESULTS, result("one", "s", 8, "11", entropy=True)]), allow_nan=False))
    assert [one["accuracy"] for one in found["results"][:2]] == [0.5, 0.75]
    assert found["results"][-1]["stderr"] is None  # one problem has none
    assert found["results"][-1]["entropy"]["mpt_entropy"] == 0.125
    assert found["results"][0]["pass_at"] == {"1": 0.5, "2": 2 / 3}
    assert [one["baseline"] for one in found["differences"]] == ["base"]


def test_results_under_other_conditions_stand_apart() -> None:
    """One sample of each problem in place of two: no column and no difference has both."""
    one = result("one sample", "aime25", 32, "1", "1", "0")
    text = all_tables([*RESULTS, one])
    assert text == f"## avg@2\n\n{all_tables(RESULTS)}\n\n## avg@1\n\n{figures_table([one])}"
    assert not difference_lines([RESULTS[0], one])
