"""What is measured by `ulorl verifier bench`: rules, and models behind a server or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ulorl.common.progress import Advance
from ulorl.rewards.generative_verifier import Verifier
from ulorl.rewards.reward import RewardError
from ulorl.rewards.rules import RulesVerdict, compare_by_rules
from ulorl.rewards.sandbox import shared_sandbox
from ulorl.rewards.verdict_policy import AnswerPair
from ulorl.verifier.measure import Judge, Rules, Verdicts
from ulorl.verifier.pairs import Pair


def math_verify(advance: Advance) -> Judge:
    """math-verify alone, which does not look at units."""
    compare = shared_sandbox("math").score

    def rules(reference: str, answer: str) -> RulesVerdict:
        return RulesVerdict.EQUAL if compare(reference=reference, answer=answer) == 1.0 else RulesVerdict.OPEN

    ruled = _of_each(rules, advance)
    return lambda pairs: [None if said is None else bool(said) for said in ruled(pairs)]


def all_rules(advance: Advance) -> Rules:
    """The same text, the same quantity, math-verify: what `reward.verifier.rules_first` asks."""
    return _of_each(compare_by_rules, advance)


def model(verifier: Verifier, advance: Advance) -> Judge:
    """A verifier's verdicts; asked again as often as it is set to, then unscored."""

    def verdicts(pairs: Sequence[Pair]) -> Verdicts:
        try:
            return verifier.verdicts(
                [AnswerPair(pair.question, pair.reference, pair.answer) for pair in pairs], advance
            )
        finally:
            verifier.close()  # its memory is the next model's

    return verdicts


def _of_each(rules: Callable[[str, str], RulesVerdict], advance: Advance) -> Rules:
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
