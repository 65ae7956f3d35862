"""Judges the cases of `ulorl reward test` as training would, and compares the verdicts with their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ulorl.answers.extraction import PROSE, locate
from ulorl.common.intervals import Interval, rate
from ulorl.common.progress import Advance
from ulorl.config.reward_config import AnswerRewardConfig, MathRewardConfig, RewardConfig
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rewards.case_files import Case, check_options
from ulorl.rewards.explanation import why
from ulorl.rewards.factory import make_reward
from ulorl.rewards.reward import Reward, Verdict, verdict_with_retries
from ulorl.rewards.rules import RulesVerdict, compare_by_rules
from ulorl.types import Problem

RULES = "rules"  # judged like a kind of reward: what reward.verifier.rules_first accepts
BATCH = 256  # cases that a model is asked about together
PAUSE = 1.0  # seconds before a reward that failed is asked again, as in training


@dataclass(frozen=True)
class Judged:
    """A case with its verdict."""

    case: Case
    verdict: Verdict | None  # None: unscored
    reason: str  # of the verdict, or how the reward failed

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict equals the label; None without a label. An unscored case agrees with no label."""
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
) -> Iterator[Judged]:
    """Yield every case with its verdict, in the order of `cases`. settings: None for `RULES`.

    Raises UserError as the reward, and after `reward.max_unscored` cases without a verdict in a row.
    """
    reward, bare = (make_reward(settings), None) if settings else (RulesReward(), BareRules())
    settings = settings or MathRewardConfig()
    if settings.kind == "choice":
        check_options(cases)
    retries = 0 if settings.kind == "generative" else settings.retries  # it asks again by itself
    unscored = 0  # in a row
    for start in range(0, len(cases), BATCH):
        some = cases[start : start + BATCH]
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
                    f"with: {failure}",
                    code=ErrorCode.REWARD_FAILED,
                    key="reward.max_unscored",
                    record=case.place,
                )
            advance(1)
            yield Judged(case, verdict, why(settings, case.problem, text, verdict) if verdict else failure)


def output_of(case: Case, settings: RewardConfig) -> str:
    r"""Return a case's output; for an answer alone, an output that holds it in the first place that is searched, by
    default a \boxed{}. A reward that judges whole outputs gets the answer as it is."""
    if case.output is not None:
        return case.output
    answer = case.answer or ""
    if not isinstance(settings, AnswerRewardConfig):
        return answer
    find = settings.answer.find
    if "boxed" in find or not find:
        answer = f"\\boxed{{{answer}}}"
    elif "tags" in find:
        answer = f"<{settings.answer.tag}>{answer}</{settings.answer.tag}>"
    return f"</{settings.answer.think_tag}>\n{answer}" if settings.answer.thinking == "required" else answer


def agreement(found: Sequence[Judged]) -> Agreement:
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
    """The rules that judge an answer before a verifier is asked: `RULES`."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge an extracted answer."""
        return self.judge_answer(problem, text)

    def judge_answer(self, problem: Problem, answer: str, place: str = "") -> Verdict:
        """Judge an extracted answer. place: where it was found."""
        ruled = compare_by_rules(problem.answer, answer)
        said = {
            RulesVerdict.EQUAL: "equal by the rules",
            RulesVerdict.DIFFERENT: "plain numbers in like units that differ",
            RulesVerdict.OPEN: "not equal by the rules: with rules_first, the verifier would be asked",
        }
        return Verdict(float(ruled is RulesVerdict.EQUAL), answer, place, said[ruled])


class RulesReward(BareRules):
    """The same rules for whole outputs, whose answer is found as `GenerativeReward` finds it."""

    def __call__(self, problem: Problem, text: str) -> Verdict:
        """Judge a whole output."""
        found = locate(text)
        if found is None:
            return Verdict(0.0, None, reason=f"no answer found in {', '.join(PROSE)}")
        return self.judge_answer(problem, found.answer, found.place)


def as_json(found: Sequence[Judged], summary: Agreement) -> dict[str, Any]:
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
