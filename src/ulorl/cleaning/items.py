"""What passes from step to step: a record, or why it was dropped. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Item:
    """One problem on its way, with what it was when it came in."""

    id: str
    question: str
    answer: str
    source: str
    place: str  # file and line, or number, of the record
    original_question: str
    original_answer: str
    changed_by: tuple[str, ...] = ()  # steps
    undecided_by: tuple[str, ...] = ()  # steps that could not tell, and let it pass
    meta: str = "{}"  # the fields that `keep` names, as JSON
    read_from: tuple[str, str] = ("", "")  # the fields that held the question and the reference

    def with_changes(self, step: str, *, question: str | None = None, answer: str | None = None) -> Item:
        """With another question or answer; itself when neither differs."""
        new = replace(self, question=question or self.question, answer=self.answer if answer is None else answer)
        if (new.question, new.answer) == (self.question, self.answer):
            return self
        return replace(new, changed_by=(*self.changed_by, step))

    def marked_undecided(self, step: str) -> Item:
        """Marked: this step could not tell."""
        return replace(self, undecided_by=(*self.undecided_by, step))


@dataclass(frozen=True)
class Drop:
    """Why a record goes: a word for the count, and what shows it (a duplicate's id, the two answers)."""

    reason: str
    detail: str = ""


Outcome = Item | Drop
Step = Callable[[Sequence[Item]], Iterable[Outcome]]  # an outcome for each item, in their order


def per_item(of_one: Callable[[Item], Outcome]) -> Step:
    """A step that looks at one record at a time."""
    return lambda items: map(of_one, items)


@dataclass(frozen=True)
class Dropped:
    """A record that went, as it was then."""

    item: Item
    step: str
    drop: Drop


@dataclass
class StepReport:
    """What a step did: counts, and the first few records of each kind."""

    name: str
    before: int = 0
    after: int = 0
    changed: int = 0
    undecided: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)  # by reason; "changed", "undecided"
