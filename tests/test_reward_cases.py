"""Judged cases: each line of fixtures/reward_cases/KIND*.jsonl holds a reference, an answer or a whole output, and the
verdict that is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ulorl.rewards import make_reward
from ulorl.rewards.rules import equal_by_rules
from ulorl.sections import Reward
from ulorl.types import Problem

CASES = Path(__file__).parent / "fixtures/reward_cases"


def _cases() -> list[Any]:
    """One parameter a line. The kind is the file's name up to the first hyphen; "rules" stands for what rules_first
    accepts without asking the verifier."""
    return [
        pytest.param(file.stem.partition("-")[0], json.loads(line), id=f"{file.stem}:{number}")
        for file in sorted(CASES.glob("*.jsonl"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if line.strip()
    ]


@pytest.mark.parametrize(("kind", "case"), _cases())
def test_every_case_is_judged_as_its_label_says(kind: str, case: dict[str, Any]) -> None:
    if kind == "rules":
        right = equal_by_rules(case["reference"], case["answer"])
    else:
        text = case.get("output", f"\\boxed{{{case.get('answer', '')}}}")
        problem = Problem("case", case.get("question", ""), case["reference"], case.get("meta", {}))
        right = make_reward(Reward(kind=kind, **case.get("settings", {})))(problem, text).reward == 1.0
    assert right is case["label"], case
