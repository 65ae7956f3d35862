"""Measures judges on labelled pairs: errors, accuracy and its intervals, in all and by kind and source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ulorl.common.intervals import Interval, mean_of, rate
from ulorl.verifier.judges import Judge
from ulorl.verifier.pairs import Pair

EXAMPLES = 8  # kept of each judge's errors of each kind


@dataclass(frozen=True)
class Score:
    """How a judge did on some pairs. An unscored pair is wrong in all rates, and no false positive or negative.

    Intervals are None where there is no such pair.
    """

    pairs: int
    problems: int
    equivalent: int
    false_positives: int  # accepted, though not equivalent
    false_negatives: int  # refused, though equivalent
    unscored: int
    accuracy: Interval | None
    balanced: Interval | None  # the mean of the next two
    accepted: Interval | None  # of the equivalent ones (sensitivity)
    refused: Interval | None  # of the others (specificity)


@dataclass(frozen=True)
class JudgeScores:
    """The scores of all judges, on all pairs and by kind and source."""

    total: dict[str, Score]
    by_kind: dict[str, dict[str, Score]]  # kind, then judge
    by_source: dict[str, dict[str, Score]]
    paper: list[tuple[Pair, dict[str, bool | None]]]  # the paper's examples and ours, with each judge's verdict
    false_positives: dict[str, list[Pair]]  # the first `EXAMPLES` of each judge
    false_negatives: dict[str, list[Pair]]


def _example(question: str, reference: str, answer: str, equivalent: bool, source: str) -> Pair:
    return Pair(question, reference, answer, equivalent, "example", "", source, "example")


# What rules misjudge in section 3.3, and the same two with another value, on which a judge that always says yes fails.
PAPER = (
    _example("How wide is the shelf?", "27cm", "0.27m", True, "the paper"),
    _example("What is the probability of heads?", r"\frac{1}{2}", "one half", True, "the paper"),
    _example("How wide is the shelf?", "27cm", "2.7m", False, "ours"),
    _example("What is the probability of heads?", r"\frac{1}{2}", "one third", False, "ours"),
)


def measure_judges(pairs: Sequence[Pair], judges: Mapping[str, Judge]) -> JudgeScores:
    """Ask every judge about all pairs and about PAPER, and return the scores."""
    asked = (*pairs, *PAPER)
    verdicts = {name: judge(asked) for name, judge in judges.items()}
    every = range(len(pairs))

    def wrongly(said: bool) -> dict[str, list[Pair]]:
        return {
            name: [pairs[i] for i in every if given[i] is said and pairs[i].equivalent is not said][:EXAMPLES]
            for name, given in verdicts.items()
        }

    def scores(indices: Sequence[int]) -> dict[str, Score]:
        chosen = [pairs[i] for i in indices]
        return {name: score(chosen, [given[i] for i in indices]) for name, given in verdicts.items()}

    def groups(names: Sequence[str]) -> dict[str, dict[str, Score]]:
        return {name: scores([i for i in every if names[i] == name]) for name in sorted(set(names))}

    return JudgeScores(
        total=scores(every),
        by_kind=groups([pair.kind for pair in pairs]),
        by_source=groups([pair.source for pair in pairs]),
        paper=[
            (pair, {name: given[len(pairs) + i] for name, given in verdicts.items()}) for i, pair in enumerate(PAPER)
        ],
        false_positives=wrongly(True),
        false_negatives=wrongly(False),
    )


def score(pairs: Sequence[Pair], verdicts: Sequence[bool | None]) -> Score:
    """Compare verdicts with the labels of their pairs. Pairs of one question are one problem, in several sources too; a
    pair without question and problem shares its problem with no other."""
    right = [verdict is pair.equivalent for pair, verdict in zip(pairs, verdicts, strict=True)]
    clusters = [
        pair.question or (f"{pair.source} {pair.problem}" if pair.problem else f"pair {i}")
        for i, pair in enumerate(pairs)
    ]

    def of(equivalent: bool) -> Interval | None:
        chosen = [i for i, pair in enumerate(pairs) if pair.equivalent is equivalent]
        return rate([right[i] for i in chosen], [clusters[i] for i in chosen])

    def errors(said: bool) -> int:
        return sum(v is said and p.equivalent is not said for p, v in zip(pairs, verdicts, strict=True))

    accepted, refused = of(True), of(False)
    return Score(
        pairs=len(pairs),
        problems=len(set(clusters)),
        equivalent=sum(pair.equivalent for pair in pairs),
        false_positives=errors(True),
        false_negatives=errors(False),
        unscored=sum(verdict is None for verdict in verdicts),
        accuracy=rate(right, clusters),
        balanced=mean_of(accepted, refused),
        accepted=accepted,
        refused=refused,
    )
