"""Judged cases: each line of fixtures/reward_cases/KIND*.jsonl holds a reference, an answer or a whole output, and the
verdict that is right."""

from __future__ import annotations

from typing import Any

import pytest

from paths import FIXTURES
from ulorl.config.reward_config import RewardConfig
from ulorl.config.unions import variants_of
from ulorl.data.record_files import Record, read_records
from ulorl.rewards.case_files import case_of
from ulorl.rewards.judged_cases import RULES, judge_cases

CASES = FIXTURES / "reward_cases"


def _cases() -> list[Any]:
    """One parameter a line. The kind is the file's name up to the first hyphen; "rules" is what rules_first
    accepts without asking the verifier. A line may name settings of the reward."""
    return [
        pytest.param(file.stem.partition("-")[0], record, id=f"{file.stem}:{number}")
        for file in sorted(CASES.glob("*.jsonl"))
        for number, record in enumerate(read_records(file), 1)
    ]


@pytest.mark.parametrize(("kind", "record"), _cases())
def test_every_case_is_judged_as_its_label_says(kind: str, record: Record) -> None:
    """By what `ulorl reward test` judges with."""
    case = case_of(record)
    settings = None if kind == RULES else variants_of(RewardConfig)[kind](**record.fields.get("settings", {}))
    (found,) = judge_cases(settings, [case])
    assert case.label is not None
    assert found.agrees, f"{record.fields}: {found}"
