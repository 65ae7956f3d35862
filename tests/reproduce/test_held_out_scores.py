"""Accuracies of arms: their intervals count seeds and problems, or say that they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from refusals import refused
from ulorl.common.intervals import crossed_mean, mean_interval
from ulorl.error_codes import ErrorCode
from ulorl.reproduce.arm_results import ArmResults
from ulorl.reproduce.arms import Subject, baseline
from ulorl.reproduce.experiments import EXPERIMENTS
from ulorl.reproduce.held_out_scores import ACCURACY, PASS, SEEDS_AND_PROBLEMS, SEEDS_ONLY, Array, scores_of
from ulorl.runs.problem_counts import ProblemCounts, read_counts, write_counts
from ulorl.runs.saved_run import SavedRun

STEPS, SAMPLES = 3, 8


def counts(right: Sequence[int], scored: Sequence[int] | None = None, first: int = 0) -> ProblemCounts:
    problems = [str(first + number) for number in range(len(right))]
    return ProblemCounts(problems, right, scored or [SAMPLES] * len(right))


def arm(folder: Path, right_SP: Array, before_SP: Array, *, stored: bool = True) -> ArmResults:
    """Return the runs of an arm whose evaluations had these numbers of right answers of 8."""
    runs = []
    for seed, of_steps in enumerate(zip(before_SP.tolist(), right_SP.tolist(), strict=True)):
        run_dir, metrics = folder / f"seed{seed}", []
        for step, right in zip((0, STEPS), of_steps, strict=True):
            metrics.append({"step": step, ACCURACY: sum(right) / SAMPLES / len(right)})
            if stored:
                write_counts(run_dir, step, counts(right))
        config = {"steps": STEPS, "seed": seed, "eval": {"samples": SAMPLES}}
        runs.append(SavedRun(run_dir, config, tuple(metrics)))
    return ArmResults(baseline(), tuple(runs))


# Eight problems. DMMPTs raise the first four by 4 to 6 right answers of 8 in every seed, and lower the last by 2 to 3.
PLAIN = np.array([[0, 1, 2, 1, 4, 5, 6, 3], [1, 0, 1, 2, 5, 4, 6, 4], [1, 1, 2, 1, 4, 5, 5, 4]])
GAINS = np.array([[4, 5, 4, 6, -2, -3, 0, 1], [5, 4, 5, 4, -3, -2, 0, 0], [4, 4, 4, 6, -2, -3, 1, 0]])
MASKED = PLAIN + GAINS


@pytest.mark.parametrize(
    ("stored", "verdict", "measured"),
    [
        (False, "reproduced", "with less without +21.9 points, 95% over seeds only: +18.0 to +25.7"),
        (
            True,
            "not resolved at this scale",
            "with less without +21.9 points, 95% over seeds and problems: -11.9 to +55.6",
        ),
    ],
)
def test_few_problems_do_not_resolve_what_seeds_alone_do(
    tmp_path: Path, stored: bool, verdict: str, measured: str
) -> None:
    """Gains of the seeds, of 64 answers: 15, 13, 14; mean 14 / 64 = 0.21875. Over seeds s / sqrt(3) = (1 / 64) /
    1.73205 = 0.009021, t(2) = 4.303: ± 0.0388 (`student` is 0.8% too low).

    Gains of the problems, of 24 answers: 13, 13, 13, 16, -7, -8, 1, 1; mean 5.25; squares of the deviations 657.5; s²
    / 8 = 657.5 / 7 / 24² / 8 = 0.020384. Together 0.020384 + 0.009021² = 0.020465, of which the root is 0.14306;
    degrees of freedom 0.020465² / (0.0000814² / 2 + 0.020384² / 7) = 7.056, t = 2.361: ± 0.3377.
    """
    start = np.zeros_like(PLAIN)
    results = {
        "UloRL": arm(tmp_path / "a", MASKED, start, stored=stored),
        "without DMMPTs": arm(tmp_path / "b", PLAIN, start),
    }
    (table2,) = (one for one in EXPERIMENTS if one.name == "table2")
    _, claim = table2.claims(results, Subject((0.2,), 64, 1))
    assert (claim.verdict, claim.measured) == (verdict, measured)


def test_scores_are_paired_by_seed_and_problem() -> None:
    """The interval is that of the differences, without what problems have in common in both arms."""
    plain, better = (scores_of(ACCURACY, table.mean(axis=1) / 8, list(map(counts, table.tolist())), 8) for table in
                     (PLAIN, MASKED))  # fmt: skip
    difference = better - plain
    assert difference.over == SEEDS_AND_PROBLEMS
    assert difference.interval == crossed_mean(GAINS / 8)
    assert plain.interval == crossed_mean(PLAIN / 8)


def test_pass_at_k_by_problem() -> None:
    """Of 2 answers at least one is right: 1 for 1 and 2 right ones, 0 for none."""
    stored = [counts([0, 1, 2], [2, 2, 2]), counts([1, 1, 0], [2, 2, 2])]
    found = scores_of(PASS, np.array([2 / 3, 2 / 3]), stored, 2)
    assert found.by_problem.tolist() == [[0, 1, 1], [1, 1, 0]]


def test_problems_that_a_seed_did_not_score_are_left_out() -> None:
    """The second problem has no accuracy in the first seed, and the third no pass@2 in the second."""
    stored = [counts([1, 0, 2, 0], [2, 0, 2, 2]), counts([1, 2, 1, 2], [2, 2, 1, 2])]
    by_seed = np.array([0.5, 0.8])
    accuracy, passed = (scores_of(key, by_seed, stored, 2) for key in (ACCURACY, PASS))
    assert accuracy.interval == crossed_mean(np.array([[0.5, 1, 0], [0.5, 1, 1]]))
    assert passed.interval == crossed_mean(np.array([[1.0, 0], [1, 1]]))


@pytest.mark.parametrize("second", [None, counts([1, 2], first=1), counts([1, 2, 3])])
def test_without_counts_of_the_same_problems_seeds_count_alone(second: ProblemCounts | None) -> None:
    found = scores_of(ACCURACY, np.array([0.25, 0.5]), [counts([1, 3]), second], 8)
    assert (found.over, found.interval) == (SEEDS_ONLY, mean_interval([0.25, 0.5]))


def test_arms_with_other_problems_are_compared_over_seeds() -> None:
    by_seed = np.array([0.25, 0.5])
    one, other = (scores_of(ACCURACY, by_seed, [counts([1, 3], first=n), counts([2, 6], first=n)], 8) for n in (0, 1))
    assert (one - one).over == SEEDS_AND_PROBLEMS
    assert (one - other).over == SEEDS_ONLY


@pytest.mark.parametrize("line", ['{"problem": "1", "right": 3}', '{"problem": "1", "right": "x", "scored": 8}', "{"])
def test_damaged_counts_name_their_file(tmp_path: Path, line: str) -> None:
    write_counts(tmp_path, 3, counts([1]))
    path = tmp_path / "evaluations" / "step_000003.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with refused(ErrorCode.RUN_DAMAGED, file=path):
        read_counts(tmp_path, 3)
