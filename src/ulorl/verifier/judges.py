"""The judges that `ulorl verifier bench` measures: rules, models behind a server or in this process, and both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TypeVar

from ulorl.common.progress import Advance, ProgressBars
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.reward import RewardError
from ulorl.rewards.rules import RulesVerdict, compare_by_rules
from ulorl.rewards.sandbox import shared_sandbox
from ulorl.rewards.verdict_policy import AnswerPair
from ulorl.verifier.pairs import Pair

Verdicts = list[bool | None]  # of each pair: equivalent, not equivalent, None: unscored
Judge = Callable[[Sequence[Pair]], Verdicts]
RulesJudge = Callable[[Sequence[Pair]], list[RulesVerdict | None]]  # None: the rules failed
TRAINED = "verifier"  # the trained verifier's name among the judges
UNTRAINED = "untrained model"
T = TypeVar("T")


def judges_by_name(models: Mapping[str, Verifier], bars: ProgressBars, pairs: int) -> dict[str, Judge]:
    """Return all judges by name, in the order of the tables: math-verify, the rules, the models, and the rules before
    the trained model. pairs: how many will be judged, for the progress bars."""

    def bar(name: str) -> Advance:
        return bars.add(name, pairs).advance

    rules = remembered(all_rules(bar("rules")))
    judges = {"math-verify": math_verify(bar("math-verify")), "rules": of_rules(rules)}
    for name, model in models.items():
        judges[name] = remembered(of_model(model, bar(name)))
        if name == TRAINED:
            judges["rules first"] = rules_first(rules, judges[name])
            judges["rules first, refusing"] = rules_first(rules, judges[name], refuse=True)
    return judges


def math_verify(advance: Advance) -> Judge:
    """Return a judge that asks math-verify alone, which ignores units."""
    compare = shared_sandbox("math").score

    def rules(reference: str, answer: str) -> RulesVerdict:
        return RulesVerdict.EQUAL if compare(reference=reference, answer=answer) == 1.0 else RulesVerdict.OPEN

    ruled = _of_each(rules, advance)
    return lambda pairs: [None if said is None else bool(said) for said in ruled(pairs)]


def all_rules(advance: Advance) -> RulesJudge:
    """Return the rules of `reward.verifier.rules_first`: the same text, the same quantity, math-verify."""
    return _of_each(compare_by_rules, advance)


def of_model(verifier: Verifier, advance: Advance) -> Judge:
    """Return a judge that asks a verifier model. After its retries a pair is unscored."""

    def verdicts(pairs: Sequence[Pair]) -> Verdicts:
        try:
            return verifier.verdicts(
                [AnswerPair(pair.question, pair.reference, pair.answer) for pair in pairs], advance
            )
        finally:
            verifier.close()  # frees its memory for the next model

    return verdicts


def remembered(judge: Callable[[Sequence[Pair]], list[T]]) -> Callable[[Sequence[Pair]], list[T]]:
    """Return a judge that is asked once about the same pairs, although several judges use it."""
    verdicts = cache(judge)
    return lambda pairs: verdicts(tuple(pairs))


def of_rules(rules: RulesJudge) -> Judge:
    """Return a judge that accepts what the rules find equal, and nothing else."""
    return lambda pairs: [None if ruled is None else ruled is RulesVerdict.EQUAL for ruled in rules(pairs)]


def rules_first(rules: RulesJudge, model: Judge, *, refuse: bool = False) -> Judge:
    """Return a judge that accepts what the rules accept (`reward.verifier.rules_first`), with `refuse` refuses what
    they find different (`rules_refuse`), and asks the model about the rest. The model is asked about all pairs, because
    the tables show it on its own too."""

    def judge(pairs: Sequence[Pair]) -> Verdicts:
        return [
            True if ruled is RulesVerdict.EQUAL else False if refuse and ruled is RulesVerdict.DIFFERENT else said
            for ruled, said in zip(rules(pairs), model(pairs), strict=True)
        ]

    return judge


def _of_each(rules: Callable[[str, str], RulesVerdict], advance: Advance) -> RulesJudge:
    def ruled(pairs: Sequence[Pair]) -> list[RulesVerdict | None]:
        said = list[RulesVerdict | None]()
        for pair in pairs:
            try:
                said.append(rules(pair.reference, pair.answer))
            except RewardError:
                said.append(None)
            advance(1)
        return said

    return ruled
