"""The values that cleaning passes from step to step: problems, the reasons to drop them, and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Item:
    """One problem in the pipeline, with its original question and answer."""

    id: str
    question: str
    answer: str
    source: str
    place: str  # file and line, or number, of the record
    original_question: str
    original_answer: str
    changed_by: tuple[str, ...] = ()  # steps
    undecided_by: tuple[str, ...] = ()  # steps that could not decide, and kept it
    meta: str = "{}"  # the fields that `keep` names, as JSON
    read_from: tuple[str, str] = ("", "")  # the fields that held the question and the reference

    def with_changes(self, step: str, *, question: str | None = None, answer: str | None = None) -> Item:
        """Return the item with another question or answer, marked as changed by `step`; itself if nothing differs."""
        new = replace(self, question=question or self.question, answer=self.answer if answer is None else answer)
        if (new.question, new.answer) == (self.question, self.answer):
            return self
        return replace(new, changed_by=(*self.changed_by, step))

    def marked_undecided(self, step: str) -> Item:
        """Return the item with the mark that `step` could not decide about it."""
        return replace(self, undecided_by=(*self.undecided_by, step))


@dataclass(frozen=True)
class Drop:
    """Why an item is dropped. reason: the name under which it is counted. detail: the evidence (a duplicate's id)."""

    reason: str
    detail: str = ""


Outcome = Item | Drop
Step = Callable[[Sequence[Item]], Iterable[Outcome]]  # an outcome for each item, in their order


def per_item(of_one: Callable[[Item], Outcome]) -> Step:
    """Return the step that applies a function to one item at a time."""
    return lambda items: map(of_one, items)


@dataclass(frozen=True)
class Dropped:
    """A dropped item, as it was before the step that dropped it."""

    item: Item
    step: str
    drop: Drop


@dataclass
class StepReport:
    """What a step did: counts, and the first few items of each kind."""

    name: str
    before: int = 0
    after: int = 0
    changed: int = 0
    undecided: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # by reason; "changed", "undecided"

    def count(self, item: Item, outcome: Outcome, examples: int) -> None:
        """Count what the step made of an item. examples: how many items of a kind are kept as examples."""
        self.before += 1
        if isinstance(outcome, Drop):
            self.dropped[outcome.reason] = self.dropped.get(outcome.reason, 0) + 1
            self._add_example(outcome.reason, item, outcome.detail, examples)
            return
        self.after += 1
        if outcome.changed_by != item.changed_by:
            self.changed += 1
            self._add_example("changed", item, f"{outcome.question}\n=> {outcome.answer}", examples)
        if outcome.undecided_by != item.undecided_by:
            self.undecided += 1
            self._add_example("undecided", item, "", examples)

    def _add_example(self, kind: str, item: Item, detail: str, examples: int) -> None:
        shown = self.examples.setdefault(kind, [])
        if len(shown) < examples:
            shown.append({"id": item.id, "question": item.question, "answer": item.answer, "detail": detail})
