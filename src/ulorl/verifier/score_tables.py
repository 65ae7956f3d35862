"""The scores of judges as Markdown tables and as JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ulorl.common.markdown import table
from ulorl.verifier.judge_scores import JudgeScores, Score
from ulorl.verifier.pairs import Pair

SAID = {True: "yes", False: "no", None: "unscored"}


def markdown(result: JudgeScores) -> str:
    """Return Markdown tables of all scores, with a sentence on their intervals."""
    pairs = next(iter(result.total.values()))
    return "\n\n".join(
        [
            f"{pairs.pairs} pairs of {pairs.problems} problems, {pairs.equivalent} of them equivalent. In brackets: "
            "95% confidence intervals. An unscored pair is wrong in all rates, and no false positive or negative.",
            _totals(result.total),
            "Balanced accuracy by kind (false positives + false negatives):\n\n" + _groups("kind", result.by_kind),
            "by source:\n\n" + _groups("source", result.by_source),
            "The paper's two examples, and the same two with answers that are not equivalent:\n\n" + _paper(result),
        ]
    )


def as_json(result: JudgeScores) -> dict[str, Any]:
    """Return all scores and the first errors of each judge as JSON values."""

    def pairs(found: Mapping[str, Sequence[Pair]]) -> dict[str, list[dict[str, Any]]]:
        return {name: [asdict(pair) for pair in some] for name, some in found.items()}

    def scores(groups: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
        return {group: {name: asdict(score) for name, score in by.items()} for group, by in groups.items()}

    return {
        **scores({"total": result.total}),
        "by_kind": scores(result.by_kind),
        "by_source": scores(result.by_source),
        "paper": [{**asdict(pair), "verdicts": verdicts} for pair, verdicts in result.paper],
        "false_positives": pairs(result.false_positives),
        "false_negatives": pairs(result.false_negatives),
    }


def _totals(total: Mapping[str, Score]) -> str:
    heads = ("judge", "accuracy", "balanced accuracy", "false positives", "false negatives", "unscored")
    return table(
        heads,
        (
            (name, str(s.accuracy), str(s.balanced or "-"), s.false_positives, s.false_negatives, s.unscored)
            for name, s in total.items()
        ),
    )


def _groups(what: str, groups: Mapping[str, Mapping[str, Score]]) -> str:
    """Return the table of scores by group. Where all pairs are equivalent, or none is, it shows accuracy in place of
    balanced accuracy."""
    names = list(next(iter(groups.values())))

    def cell(score: Score) -> str:
        starred = "" if score.balanced else "*"
        return f"{score.balanced or score.accuracy}{starred} {score.false_positives}+{score.false_negatives}"

    scores = table(
        (what, "pairs (equivalent)", *names),
        (
            (group, f"{score.pairs} ({score.equivalent})", *(cell(by[name]) for name in names))
            for group, by in groups.items()
            for score in [by[names[0]]]
        ),
    )
    one_sided = any(not score.balanced for by in groups.values() for score in by.values())
    return scores + ("\n\n\\* accuracy: all pairs of this line are equivalent, or none is." if one_sided else "")


def _paper(result: JudgeScores) -> str:
    names = list(result.total)
    rows = (
        (pair.reference, pair.answer, SAID[pair.equivalent], *(SAID[verdicts[name]] for name in names))
        for pair, verdicts in result.paper
    )
    return table(("reference", "predicted", "equivalent", *names), rows)
