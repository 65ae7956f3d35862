"""The fingerprint of a run's training problems, by which a run that resumes knows whether they are still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from ulorl.types import Problem

_SEPARATOR = "-"


def problem_fingerprint(problems: Sequence[Problem]) -> str:
    """Return two hashes of the problems in their order, joined by "-": of their ids, and of questions and reference
    answers. The id of a record without one is its place in the file, and says nothing about its content.
    """
    contents = (json.dumps([problem.prompt, problem.answer]) for problem in problems)
    return _SEPARATOR.join((_hash(problem.id for problem in problems), _hash(contents)))


def changed_problems(saved: str, present: str) -> str:
    """Return what differs between the problems of two fingerprints, in words; "" when nothing does.

    saved: of a checkpoint. One of an earlier version has the hash of the ids only, and nothing else is compared then.
    """
    (old_ids, _, old_contents), (ids, _, contents) = saved.partition(_SEPARATOR), present.partition(_SEPARATOR)
    if old_ids != ids:
        return "another number, other ids or another order"
    if old_contents and old_contents != contents:
        return "the ids are the same, but questions, reference answers or their order changed"
    return ""


def remedy(saved: str) -> str:
    """Return how a run can be resumed whose problems are not those of its fingerprint `saved`, in words."""
    text = "restore the data as it was, the held-out problems too, because their questions are not trained"
    if _SEPARATOR in saved:
        return text
    return f"{text}; or an earlier commit trained problems of eval.data beyond eval.problems: resume with that commit"


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
