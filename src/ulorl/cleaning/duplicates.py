"""Step `duplicates`: drops copies of a question, and near-copies by MinHash. The first one is kept."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from ulorl.answers.normalisation import comparable_answer, comparable_question
from ulorl.cleaning.cleaning_config import DuplicatesConfig
from ulorl.cleaning.items import Drop, Item, Outcome, Step
from ulorl.cleaning.question_text import numbers, words
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError

AnswersEqual = Callable[[str, str], bool | None]  # whether two answers are equal; None when that is unknown
_UNIT = re.compile(r"\\(?:text\w*|mbox|mathrm)\s*\{[^{}0-9]*\}|\{[a-z]{2,}\}|\^\{?\\circ\}?|\\?%|normal\{\w*\}")
_WIDER = 0.8  # of the similarity: MinHash proposes from there on, the exact Jaccard decides


def drop_duplicates(settings: DuplicatesConfig, same: AnswersEqual) -> Step:
    """Return the step that drops copies and near-copies of questions.

    If the references of copies contradict each other, all of them are dropped, since it is unknown which one is right.
    Near-copies have a Jaccard similarity of `settings.similarity` or more, the same numbers and the same answer. Raises
    UserError when datasketch is missing.
    """
    if importlib.util.find_spec("datasketch") is None:
        raise UserError(
            'duplicates.enabled=true needs datasketch: pip install "ulorl[data]"',
            code=ErrorCode.EXTRA_MISSING,
            key="duplicates.enabled",
        )
    return partial(_drop_duplicates, settings=settings, same=same)


def _drop_duplicates(items: Sequence[Item], *, settings: DuplicatesConfig, same: AnswersEqual) -> Iterable[Outcome]:
    outcomes: list[Outcome] = list(items)
    groups: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[comparable_question(item.question)].append(index)
    firsts = []
    for group in groups.values():
        outcomes_of_group = _copies([items[i] for i in group], same)
        for index, outcome in zip(group, outcomes_of_group, strict=True):
            outcomes[index] = outcome
        if isinstance(outcomes[group[0]], Item):
            firsts.append(group[0])
    for later, earlier, similarity in _near([items[i] for i in firsts], settings):
        outcomes[firsts[later]] = Drop("near-duplicate", f"of {items[firsts[earlier]].id}, Jaccard {similarity:.2f}")
    return outcomes


def _copies(group: Sequence[Item], same: AnswersEqual) -> list[Outcome]:
    first, outcomes, undecided = group[0], list[Outcome](group), False
    for index, item in enumerate(group[1:], 1):
        equal = _value(item.answer) == _value(first.answer) or same(first.answer, item.answer)
        if equal is False:
            return [Drop("contradicting references", f"{_both(item, group)}") for item in group]
        undecided |= equal is None
        outcomes[index] = Drop("duplicate", f"of {first.id}")
    outcomes[0] = first.marked_undecided("duplicates") if undecided else first
    return outcomes


def _value(answer: str) -> str:
    """Return an answer without units and words: exports of one data set keep different ones."""
    return comparable_answer(_UNIT.sub("", answer)).replace("{", "").replace("}", "")


def _both(item: Item, group: Sequence[Item]) -> str:
    return "; ".join(f"{other.id} has {other.answer}" for other in group if other is not item)


def _near(items: Sequence[Item], settings: DuplicatesConfig) -> Iterator[tuple[int, int, float]]:
    """Pairs (later, earlier, similarity). An item that is dropped is not compared with later ones."""
    from datasketch import MinHash, MinHashLSH

    table = MinHashLSH(threshold=settings.similarity * _WIDER, num_perm=settings.permutations)
    runs = [_runs(words(item.question), settings.run) for item in items]
    keys = [(numbers(item.question), comparable_answer(item.answer)) for item in items]
    blank = MinHash(num_perm=settings.permutations, seed=settings.seed, hashfunc=_hash)
    for index, own in enumerate(runs):
        if not own:
            continue
        minhash = blank.copy()
        minhash.update_batch([run.encode() for run in own])
        for earlier in sorted(table.query(minhash)):
            similarity = len(own & runs[earlier]) / len(own | runs[earlier])
            if similarity >= settings.similarity and keys[index] == keys[earlier]:
                yield index, earlier, similarity
                break
        else:
            table.insert(index, minhash)


def _hash(run: bytes) -> int:
    return int(np.frombuffer(hashlib.blake2b(run, digest_size=4).digest(), dtype="<u4")[0])


def _runs(tokens: Sequence[str], length: int) -> frozenset[str]:
    return frozenset(" ".join(tokens[i : i + length]) for i in range(max(1, len(tokens) - length + 1))) - {""}
