"""evaluations/step_<step>.jsonl: what the evaluation after a step found, a line for each held-out problem."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulorl.common import atomic_files
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.runs.saved_run import read_samples

EVALUATIONS = "evaluations"


@dataclass(frozen=True)
class ProblemCounts:
    """How many answers to each held-out problem were scored, and how many of them are right. problems: their ids."""

    problems: Sequence[str]
    right: Sequence[int]
    scored: Sequence[int]


def write_counts(run_dir: Path, step: int, counts: ProblemCounts) -> None:
    """Store the counts of the evaluation after `step` steps, in place of those of an evaluation that was repeated."""
    path = _file(run_dir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(counts.problems, counts.right, counts.scored, strict=True)
    lines = [json.dumps({"problem": problem, "right": right, "scored": scored}) for problem, right, scored in rows]
    atomic_files.write_text(path, "".join(line + "\n" for line in lines))


def read_counts(run_dir: Path, step: int) -> ProblemCounts | None:
    """Return the counts of the evaluation after `step` steps; None where the run stored none, as earlier versions did.
    Raises UserError naming the file when it is damaged."""
    path = _file(run_dir, step)
    if not path.exists():
        return None
    try:
        rows = [(str(row["problem"]), int(row["right"]), int(row["scored"])) for row in read_samples(path)]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: a line is not the counts of a problem ({type(error).__name__}: {error}); delete the file to have "
            "intervals over seeds only",
            code=ErrorCode.RUN_DAMAGED,
            file=path,
        ) from None
    problems, right, scored = zip(*rows, strict=True) if rows else ((), (), ())
    return ProblemCounts(problems, right, scored)


def _file(run_dir: Path, step: int) -> Path:
    return run_dir / EVALUATIONS / f"step_{step:06d}.jsonl"
