"""The fingerprint of training problems: what counts as a change."""

from __future__ import annotations

import hashlib
import json

import pytest

from ulorl.training.problem_fingerprint import changed_problems, problem_fingerprint, remedy
from ulorl.types import Problem

BEGAN = [Problem("train.jsonl:1", "1 + 1 = ?", "2"), Problem("train.jsonl:2", "2 + 2 = ?", "4")]
SHUFFLED = [Problem("train.jsonl:1", "2 + 2 = ?", "4"), Problem("train.jsonl:2", "1 + 1 = ?", "2")]


def test_equal_problems_are_unchanged() -> None:
    again = [Problem(p.id, p.prompt, p.answer, {"source": "another"}) for p in BEGAN]
    assert changed_problems(problem_fingerprint(BEGAN), problem_fingerprint(again)) == ""


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (BEGAN[:1], "another number"),
        (BEGAN[::-1], "another number, other ids or another order"),
        (SHUFFLED, "the ids are the same"),
        ([BEGAN[0], Problem("train.jsonl:2", "2 + 3 = ?", "4")], "the ids are the same"),
        ([BEGAN[0], Problem("train.jsonl:2", "2 + 2 = ?", "5")], "the ids are the same"),
        ([BEGAN[0], Problem("train.jsonl:2", "2 + 2 = ? 4", "")], "the ids are the same"),
    ],
    ids=["fewer", "ids in another order", "lines in another order", "question", "answer", "moved text"],
)
def test_every_change_is_named(now: list[Problem], what: str) -> None:
    assert what in changed_problems(problem_fingerprint(BEGAN), problem_fingerprint(now))


def test_checkpoints_of_earlier_versions_have_the_hash_of_the_ids_only() -> None:
    old = hashlib.sha256(b"train.jsonl:1\ntrain.jsonl:2").hexdigest()[:16]
    contents = "\n".join(json.dumps([p.prompt, p.answer]) for p in BEGAN)
    assert problem_fingerprint(BEGAN) == f"{old}-{hashlib.sha256(contents.encode()).hexdigest()[:16]}"
    assert changed_problems(old, problem_fingerprint(BEGAN)) == ""
    assert changed_problems(old, problem_fingerprint(BEGAN[::-1])) == "another number, other ids or another order"
    assert remedy(old).startswith(remedy(problem_fingerprint(BEGAN)) + "; or an earlier commit trained problems")
