"""Judges the cases of `ulorl reward test` as training would, and compares the verdicts with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ulorl.common.intervals import Interval, rate
from ulorl.common.progress import Advance
from ulorl.config.reward_config import MathRewardConfig, RewardConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.answer_reward import AnswerReward
from ulorl.rewards.case_files import Case, bad_records
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Reward, Verdict, verdict_with_retries
from ulorl.rewards.rules import RulesVerdict, compare_by_rules
from ulorl.types import Problem

RULES = "rules"  # judged like a kind of reward: what reward.verifier.rules_first accepts
BATCH = 256  # cases that a model is asked about together
PAUSE = 1.0  # seconds before a reward that failed is asked again, as in training


@dataclass(frozen=True)
class JudgedCase:
    """A case with its verdict."""

    case: Case
    verdict: Verdict | None  # None: unscored
    reason: str  # of the verdict, or how the reward failed

    @property
    def agrees(self) -> bool | None:
        """True if the verdict equals the label; None without a label. An unscored case agrees with no label."""
        if self.case.label is None:
            return None
        return self.verdict is not None and (self.verdict.reward == 1.0) is self.case.label


@dataclass(frozen=True)
class Agreement:
    """Counts of labelled cases. An unscored one is neither positive nor negative, and does not agree."""

    true_positives: int  # accepted, and right
    false_positives: int  # accepted, though wrong
    true_negatives: int  # refused, and wrong
    false_negatives: int  # refused, though right
    unscored: int
    unlabelled: int  # cases without a label
    rate: Interval | None  # None without a label

    @property
    def labelled(self) -> int:
        """The number of cases with a label."""
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives + self.unscored


def judge_cases(
    settings: RewardConfig | None, cases: Sequence[Case], advance: Advance = lambda _: None
) -> Iterator[JudgedCase]:
    """Yield every case with its verdict, in the order of `cases`. settings: None for `RULES`.

    Raises UserError as the reward, and after `reward.max_unscored` cases without a verdict in a row.
    """
    reward, of_answers = (make_reward(settings), None) if settings else (RulesReward(), BareRules())
    settings = settings or MathRewardConfig()
    _check(cases, reward)
    yield from _judge(
        cases, reward, of_answers, retries=settings.retries, max_unscored=settings.max_unscored, advance=advance
    )


def _judge(
    cases: Sequence[Case],
    reward: Reward,
    of_answers: Reward | None,
    *,
    retries: int,
    max_unscored: int,
    advance: Advance,
) -> Iterator[JudgedCase]:
    """Judge the cases. of_answers: judges answers that are extracted already, in place of `reward`."""
    unscored = 0  # in a row
    for start in range(0, len(cases), BATCH):
        batch = [_given(case, reward, of_answers) for case in cases[start : start + BATCH]]
        futures = [judge.submit(case.problem, text) for case, judge, text in batch]
        for (case, judge, text), future in zip(batch, futures, strict=True):
            verdict, error = verdict_with_retries(judge, case.problem, text, future, retries=retries, pause=PAUSE)
            unscored = 0 if verdict else unscored + 1
            failure = f"{type(error).__name__}: {error}"
            if unscored >= max_unscored:
                raise UserError(
                    f"the reward failed for {unscored} records in a row (reward.max_unscored), at last at {case.place} "
                    f"with: {failure}",
                    code=ErrorCode.REWARD_FAILED,
                    key="reward.max_unscored",
                    record=case.place,
                )
            advance(1)
            yield JudgedCase(case, verdict, judge.explain(case.problem, text, verdict) if verdict else failure)


def _given(case: Case, reward: Reward, of_answers: Reward | None) -> tuple[Case, Reward, str]:
    """Return the case, what judges it, and the text that it is given."""
    if case.output is not None:
        return case, reward, case.output
    answer = case.answer or ""
    return (case, of_answers, answer) if of_answers else (case, reward, reward.output_with(answer))


def _check(cases: Sequence[Case], reward: Reward) -> None:
    """Raise UserError naming the cases that the reward cannot judge."""
    faults = list[UserError]()
    for case in cases:
        try:
            reward.check(case.problem)
        except UserError as error:
            faults.append(UserError(f"{case.place}: {error}", code=error.code, key=error.key, record=case.place))
    if faults:
        raise bad_records(faults)


def agreement(found: Sequence[JudgedCase]) -> Agreement:
    """Return how verdicts agree with labels. Records of one question are one problem in the interval; each record
    without a question is a problem of its own."""
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
    """The rules that judge an extracted answer before a verifier is asked: `RULES`."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge an extracted answer."""
        return _by_rules(problem, text)


class RulesReward(AnswerReward):
    """The same rules for whole outputs, whose answer is found as `GenerativeReward` finds it."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge a whole output."""
        found = self.locate(text)
        return self.without_answer() if found is None else _by_rules(problem, found.answer, found.place)


def _by_rules(problem: Problem, answer: str, place: str = "") -> Verdict:
    verdict = compare_by_rules(problem.answer, answer)
    reasons = {
        RulesVerdict.EQUAL: "equal by the rules",
        RulesVerdict.DIFFERENT: "plain numbers in like units that differ",
        RulesVerdict.OPEN: "not equal by the rules: with rules_first, the verifier would be asked",
    }
    return Verdict(float(verdict is RulesVerdict.EQUAL), answer, place, reasons[verdict])


def as_json(found: Sequence[JudgedCase], summary: Agreement) -> dict[str, Any]:
    """Return what `--json` writes."""
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
