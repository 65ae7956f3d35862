"""What is measured by `ulorl verifier bench`: rules, and models behind a server or in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ulorl.completions.model import Watch
from ulorl.rewards.base import RewardError
from ulorl.rewards.generative import Verifier
from ulorl.rewards.judge import judge
from ulorl.rewards.rules import equal_by_rules
from ulorl.verifier.bench import Judge, Verdicts
from ulorl.verifier.pairs import Pair


def math_verify(watch: Watch) -> Judge:
    """math-verify alone, which does not look at units."""
    compare = judge("math").score
    return _rules(lambda reference, answer: compare(reference=reference, answer=answer) == 1.0, watch)


def all_rules(watch: Watch) -> Judge:
    """The same text, the same quantity, math-verify: what `reward.verifier.rules_first` asks."""
    return _rules(equal_by_rules, watch)


def model(verifier: Verifier, watch: Watch) -> Judge:
    """A verifier's verdicts; asked again as often as it is set to, then unscored."""

    def verdicts(pairs: Sequence[Pair]) -> Verdicts:
        try:
            return verifier.verdicts([(pair.question, pair.reference, pair.answer) for pair in pairs], watch)
        finally:
            verifier.close()  # its memory is the next model's

    return verdicts


def _rules(equal: Callable[[str, str], bool], watch: Watch) -> Judge:
    def verdicts(pairs: Sequence[Pair]) -> Verdicts:
        said: Verdicts = []
        for pair in pairs:
            try:
                said.append(equal(pair.reference, pair.answer))
            except RewardError:
                said.append(None)
            watch(1)
        return said

    return verdicts
