"""Judged cases: records with an output or an answer and its reference, judged as training would, and compared with
their labels where they have any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ulorl.answers.choices import options_of
from ulorl.answers.extraction import PROSE, locate
from ulorl.common.intervals import Interval, rate
from ulorl.config.reward_config import RewardConfig
from ulorl.data.record_files import Record, decimal, expand, is_number, read_records
from ulorl.errors import UserError, bad_character, listing
from ulorl.rewards.explanation import why
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Reward, Verdict, verdict_with_retries
from ulorl.rewards.rules import RulesVerdict, compare_by_rules
from ulorl.types import Problem

RULES = "rules"  # beside the kinds of rewards: what reward.verifier.rules_first accepts
AT_ONCE = 256  # cases that a model is asked about together
PAUSE = 1.0  # seconds before a reward that failed is asked again, as in training
_OPTIONS = ("options", "choices")


@dataclass(frozen=True)
class Case:
    """A record. One of `output` (whole) and `answer` (extracted already) is there."""

    place: str  # file and line
    problem: Problem
    output: str | None
    answer: str | None
    label: bool | None = None  # whether it is right; None: nobody says


@dataclass(frozen=True)
class Judged:
    """What the reward says of a case."""

    case: Case
    verdict: Verdict | None  # None: unscored
    reason: str  # of the verdict, or how the reward failed

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict is the label's; None without a label. Unscored agrees with nothing."""
        if self.case.label is None:
            return None
        return self.verdict is not None and (self.verdict.reward == 1.0) is self.case.label


@dataclass(frozen=True)
class Agreement:
    """Of the labelled cases. An unscored one is neither positive nor negative, and does not agree."""

    true_positives: int  # accepted, and right
    false_positives: int  # accepted, though wrong
    true_negatives: int  # refused, and wrong
    false_negatives: int  # refused, though right
    unscored: int
    unlabelled: int  # cases without a label
    rate: Interval | None  # None without a label

    @property
    def labelled(self) -> int:
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives + self.unscored


def read_cases(paths: Sequence[str]) -> list[Case]:
    """The cases of JSONL, JSON or Parquet files, paths or glob patterns, in their order.

    Raises UserError naming file and line of bad records, the first ten of many.
    """
    cases, faults = list[Case](), list[UserError]()
    for path in paths:
        try:
            files = expand(path)
        except UserError as error:
            raise UserError(str(error).removeprefix("data.path=")) from None
        for record in (record for file in files for record in read_records(file)):
            try:
                cases.append(case_of(record))
            except UserError as error:
                faults.append(error)
    if faults:
        raise UserError(f"{len(faults)} bad records:\n{listing(faults)}")
    if not cases:
        raise UserError(f"{' '.join(paths)}: no records")
    return cases


def check_options(cases: Sequence[Case]) -> None:
    """Raises UserError naming the cases whose options reward.kind=choice cannot read."""
    faults = list[UserError]()
    for case in cases:
        try:
            options_of(case.problem)
        except UserError as error:
            faults.append(UserError(f"{case.place}: {error}"))
    if faults:
        raise UserError(f"{len(faults)} bad records:\n{listing(faults)}")


def case_of(record: Record | UserError) -> Case:
    """Raises UserError naming the record and the field that is wrong."""
    if isinstance(record, UserError):
        raise record
    fields = {name: value for name, value in record.fields.items() if value is not None}
    texts = {name: _text(record, name, fields[name]) for name in ("reference", "output", "answer") if name in fields}
    if not texts.get("reference", "").strip():
        raise UserError(f"{record.place}: no field 'reference', or nothing in it; the fields are {_names(record)}")
    if ("output" in texts) is ("answer" in texts):
        found = "both" if "output" in texts else "neither"
        raise UserError(
            f"{record.place}: give 'output' (a whole output) or 'answer' (an answer that is extracted already), one of "
            f"them, found {found}; the fields are {_names(record)}"
        )
    question = _text(record, "question", fields.get("question", ""))
    label = fields.get("label")
    if label is not None and label not in (0, 1):
        raise UserError(f"{record.place}: field 'label' is {_short(label)}, expected true, false, 1 or 0")
    meta = fields.get("meta", {})
    if not isinstance(meta, dict):
        raise UserError(f"{record.place}: field 'meta' is {_short(meta)}, expected an object")
    meta = {**{name: fields[name] for name in _OPTIONS if name in fields}, **meta}
    name = fields.get("id")
    problem = Problem(
        str(name) if isinstance(name, str | int) else record.place, question, texts["reference"].strip(), meta
    )
    return Case(record.place, problem, texts.get("output"), texts.get("answer"), None if label is None else bool(label))


def judge_cases(
    settings: RewardConfig | None, cases: Sequence[Case], watch: Callable[[int], None] = lambda _: None
) -> Iterator[Judged]:
    """What the reward says of each case, in their order. settings: None for `RULES`. watch: told of cases as they are
    judged. Raises UserError as the reward, and after `reward.max_unscored` cases without a verdict in a row."""
    reward, bare = (make_reward(settings), None) if settings else (RulesReward(), BareRules())
    settings = settings or RewardConfig()
    if settings.kind == "choice":
        check_options(cases)
    retries = 0 if settings.kind == "generative" else settings.retries  # it asks again by itself
    unscored = 0  # in a row
    for start in range(0, len(cases), AT_ONCE):
        some = cases[start : start + AT_ONCE]
        asked = [bare if bare and case.answer is not None else reward for case in some]
        texts = [
            case.answer or "" if ask is bare else output_of(case, settings)
            for case, ask in zip(some, asked, strict=True)
        ]
        futures = [ask.submit(case.problem, text) for case, ask, text in zip(some, asked, texts, strict=True)]
        for case, ask, text, future in zip(some, asked, texts, futures, strict=True):
            verdict, error = verdict_with_retries(ask, case.problem, text, future, retries=retries, pause=PAUSE)
            unscored = 0 if verdict else unscored + 1
            failure = f"{type(error).__name__}: {error}"
            if unscored >= settings.max_unscored:
                raise UserError(
                    f"the reward failed for {unscored} records in a row (reward.max_unscored), at last at {case.place} "
                    f"with: {failure}"
                )
            watch(1)
            yield Judged(case, verdict, why(settings, case.problem, text, verdict) if verdict else failure)


def output_of(case: Case, settings: RewardConfig) -> str:
    r"""The case's output; for an answer alone one that holds it in the first place that is looked into, a \boxed{}
    as a rule. What judges whole outputs gets the answer as it is."""
    if case.output is not None:
        return case.output
    answer, find = case.answer or "", settings.answer.find
    if settings.kind in ("function", "countdown"):
        return answer
    if "boxed" in find or not find:
        answer = f"\\boxed{{{answer}}}"
    elif "tags" in find:
        answer = f"<{settings.answer.tag}>{answer}</{settings.answer.tag}>"
    return f"</{settings.answer.think_tag}>\n{answer}" if settings.answer.thinking == "required" else answer


def agreement(found: Sequence[Judged]) -> Agreement:
    """Of verdicts with labels. Records of one question are one problem in the interval; one without a question is a
    problem of its own."""
    labelled = [one for one in found if one.case.label is not None]

    def count(label: bool, reward: float) -> int:
        return sum(
            one.case.label is label and one.verdict is not None and one.verdict.reward == reward for one in labelled
        )

    return Agreement(
        true_positives=count(True, 1.0),
        false_positives=count(False, 1.0),
        true_negatives=count(False, 0.0),
        false_negatives=count(True, 0.0),
        unscored=sum(one.verdict is None for one in labelled),
        unlabelled=len(found) - len(labelled),
        rate=rate([bool(one.agrees) for one in labelled], [one.case.problem.prompt for one in labelled]),
    )


class BareRules(Reward):
    """What the rules say of an answer before a verifier is asked: `RULES`."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        return self.of(problem, text)

    def of(self, problem: Problem, answer: str, place: str = "") -> Verdict:
        """place: where the answer stood."""
        ruled = compare_by_rules(problem.answer, answer)
        said = {
            RulesVerdict.EQUAL: "equal by the rules",
            RulesVerdict.DIFFERENT: "plain numbers in like units that differ",
            RulesVerdict.OPEN: "not equal by the rules: with rules_first, the verifier would be asked",
        }
        return Verdict(float(ruled is RulesVerdict.EQUAL), answer, place, said[ruled])


class RulesReward(BareRules):
    """Of a whole output's answer, found as a verifier's reward finds it."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        found = locate(text)
        if found is None:
            return Verdict(0.0, None, reason=f"no answer found in {', '.join(PROSE)}")
        return self.of(problem, found.answer, found.place)


def as_json(found: Sequence[Judged], summary: Agreement) -> dict[str, Any]:
    """What `--json` writes."""
    counts = {name: value for name, value in vars(summary).items() if name != "rate"}
    of_rate = summary.rate and {"value": summary.rate.value, "low": summary.rate.low, "high": summary.rate.high}
    return {
        "records": [
            {
                "record": one.case.place,
                "reward": int(one.verdict.reward) if one.verdict else None,
                "extracted": one.verdict.answer if one.verdict else None,
                "place": one.verdict.place if one.verdict else "",
                "reason": one.reason,
                "reference": one.case.problem.answer,
                "label": one.case.label,
                "agrees": one.agrees,
            }
            for one in found
        ],
        "agreement": {**counts, "labelled": summary.labelled, "rate": of_rate},
    }


def _text(record: Record, name: str, value: Any) -> str:
    """Numbers are written as in the problems of training."""
    if not (is_number(value) or isinstance(value, str)):
        raise UserError(f"{record.place}: field {name!r} is {_short(value)}, expected text or a number")
    text = value if isinstance(value, str) else decimal(value)
    if where := bad_character(text):
        raise UserError(f"{record.place}: field {name!r} {where}; remove it")
    return text


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


def _names(record: Record) -> str:
    return ", ".join(map(str, record.fields))[:300] or "none"
