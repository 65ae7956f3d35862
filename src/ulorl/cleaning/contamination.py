"""Step `contamination`: drops questions of evaluation sets, whole, in a long run of words, or reworded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from ulorl.answers.normalisation import HAN, comparable_question
from ulorl.cleaning.cleaning_config import ContaminationConfig
from ulorl.cleaning.items import Drop, Item, Outcome, Step
from ulorl.cleaning.question_text import undrawn, words
from ulorl.cleaning.short_questions import ShortQuestions

_HAN = re.compile(f"[{HAN}]")


def drop_contaminated(settings: ContaminationConfig, evaluation: Sequence[Item]) -> Step:
    """Return the step that drops questions of the evaluation problems.

    It drops a question that differs from one of `evaluation` only in typesetting; one that shares runs of
    `settings.run` words with it, if the runs cover `settings.share` of the shorter question; and one that rewords an
    evaluation problem of fewer than `settings.short` words. Runs that occur in more than `settings.common` of the
    questions are common phrases and do not count.
    """
    return partial(_drop, table=_Table(evaluation, settings), settings=settings)


class _Table:
    """The evaluation problems by their whole text, and by their runs of words."""

    def __init__(self, evaluation: Sequence[Item], settings: ContaminationConfig) -> None:
        self.whole = {comparable_question(item.question): item.id for item in reversed(evaluation)}
        self.lengths: dict[str, int] = {}  # in words
        self.short = ShortQuestions(
            [(item.id, item.question) for item in evaluation], settings.short, settings.similarity
        )
        self.runs: dict[str, list[str]] = {}  # the problems in which each run occurs
        for item in evaluation:
            tokens = words(undrawn(item.question))
            self.lengths[item.id] = len(tokens)
            for run in set(_runs(tokens, settings)):
                self.runs.setdefault(run, []).append(item.id)


def _drop(items: Sequence[Item], *, table: _Table, settings: ContaminationConfig) -> Iterable[Outcome]:
    tokens = [words(undrawn(item.question)) for item in items]
    count = Counter(run for own in tokens for run in set(_runs(own, settings)) if run in table.runs)
    for item, own in zip(items, tokens, strict=True):
        if name := table.whole.get(comparable_question(item.question)):
            yield Drop("evaluation problem", f"is {name}")
        elif found := _overlap(own, table, count, settings):
            yield Drop("overlap with evaluation", found)
        elif name := table.short.copied(item.question):
            yield Drop("evaluation problem in other words", f"of {name}")
        else:
            yield item


def _overlap(tokens: Sequence[str], table: _Table, count: Counter[str], settings: ContaminationConfig) -> str:
    """The evaluation problem that shares most with a question, if that is enough, and the first run that they share."""
    runs = _runs(tokens, settings)
    covered: dict[str, set[int]] = {}
    for start, run in enumerate(runs):
        if run in table.runs and count[run] <= settings.common:
            for name in table.runs[run]:
                covered.setdefault(name, set()).update(range(start, start + len(tokens) - len(runs) + 1))
    shares = {name: len(at) / min(len(tokens), table.lengths[name]) for name, at in covered.items()}
    name = max(shares, key=lambda n: shares[n], default="")
    if not name or shares[name] < settings.share:
        return ""
    return f"{name}, {shares[name]:.0%} of the shorter: {runs[min(covered[name])]}"


def _runs(tokens: Sequence[str], settings: ContaminationConfig) -> list[str]:
    """Return every run of words, in their order; of characters, if the question is mostly Chinese."""
    han = sum(bool(_HAN.match(token)) for token in tokens)
    n = settings.run_han if 2 * han > len(tokens) else settings.run
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
