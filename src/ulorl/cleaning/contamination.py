"""Step `contamination`: questions that an evaluation set asks too, whole, in a long run of words, or in other words."""

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
    """Deletes questions equal to one of `evaluation` but for typesetting, those that share runs of `settings.run` words
    with one, if the runs cover `settings.share` of the shorter question, and those that are one of fewer than
    `settings.short` words in other words. Runs that stand in more than `settings.common` of the questions are phrases
    and do not count."""
    return partial(_drop, table=_Table(evaluation, settings), settings=settings)


class _Table:
    """The evaluation problems by their whole text, and by their runs."""

    def __init__(self, evaluation: Sequence[Item], settings: ContaminationConfig) -> None:
        self.whole = {comparable_question(item.question): item.id for item in reversed(evaluation)}
        self.lengths: dict[str, int] = {}  # in words
        self.short = ShortQuestions(
            [(item.id, item.question) for item in evaluation], settings.short, settings.similarity
        )
        self.runs: dict[str, list[str]] = {}  # which problems it stands in
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
    """The evaluation problem with which a question shares most, if that is enough, and the first run it shares."""
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
    """Every run of words, in their order; of a question that is mostly Chinese, of characters."""
    han = sum(bool(_HAN.match(token)) for token in tokens)
    n = settings.run_han if 2 * han > len(tokens) else settings.run
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
