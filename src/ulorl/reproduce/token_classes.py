"""Attributes the change of entropy to classes of tokens: MPTs, other tokens of right samples, tokens of wrong samples.

Masking MPTs (section 3.2) trains on the last two. Figure 4, where masking raises entropy, can only appear where these
by themselves do not lower it. Shapes: N tokens of an update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ulorl.common.intervals import Interval, student

CLASSES = ("mpts", "other_right", "wrong", "all_but_mpts", "all")
Verdict = Literal["can", "cannot", "not resolved", "nothing to raise"]


@dataclass(frozen=True, eq=False)
class TrainedTokens:
    """The tokens of an update, [N] each.

    prompt_N: the index of the prompt, below `prompts`; prompts without a token here added nothing. right_N: whether the
    sample has reward 1. logprobs_N: under the weights that train. changes: what the token adds to the change of the
    mean held-out entropy, in 1e-3 nats, by the name of the step ("SGD", "Adam").
    """

    prompts: int
    prompt_N: NDArray[np.int64]
    right_N: NDArray[np.bool_]
    logprobs_N: NDArray[np.float32]
    changes: Mapping[str, NDArray[np.float64]]

    def attribution(self, step: str, tau: float) -> dict[str, Interval]:
        """Return what each of `CLASSES` adds to the change of the mean held-out entropy, in the unit of `changes`.

        "mpts", "other_right" and "wrong" add up to "all"; "all_but_mpts" is what masking all MPTs (eq. 9) trains on.
        The 95% intervals are those of a t test over prompts, with the held-out entropy taken as given.
        """
        change_N, mpt_N = self.changes[step], self.right_N & (self.logprobs_N >= math.log(tau))
        chosen = (mpt_N, self.right_N & ~mpt_N, ~self.right_N, ~mpt_N, np.ones_like(mpt_N))
        return {name: self._sum(change_N * of_N) for name, of_N in zip(CLASSES, chosen, strict=True)}

    def _sum(self, values_N: NDArray[np.float64]) -> Interval:
        """Return the sum with its interval: n prompts, drawn independently, give a sum with the variance n s²."""
        sums = np.bincount(self.prompt_N, values_N, self.prompts)
        value, n = float(sums.sum()), self.prompts
        half = student(n - 1) * math.sqrt(n) * float(sums.std(ddof=1)) if n > 1 else math.inf
        return Interval(value, value - half, value + half)


def verdict(attributions: Mapping[str, Mapping[str, Interval]]) -> Verdict:
    """Return whether masking all MPTs can raise entropy, from the attribution under each step.

    "can", "cannot": all tokens but MPTs raise it, or lower it, under every step, and no interval contains 0. "nothing
    to raise": training on all tokens already raises it under every step. "not resolved": anything else.
    """
    rest = [one["all_but_mpts"] for one in attributions.values()]
    if all(one["all"].low > 0 for one in attributions.values()):
        return "nothing to raise"
    if all(one.low > 0 for one in rest):
        return "can"
    return "cannot" if all(one.high < 0 for one in rest) else "not resolved"


_SENTENCES: Mapping[Verdict, str] = {
    "can": "masking MPTs can raise entropy here: the other tokens by themselves raise it",
    "cannot": "masking MPTs cannot raise entropy here: the other tokens by themselves lower it",
    "nothing to raise": "training on all tokens already raises entropy here: there is no fall for masking to stop",
    "not resolved": "not resolved: whether the other tokens by themselves raise or lower entropy here differs between "
    "prompts or steps; give more prompts",
}


def sentence(attributions: Mapping[str, Mapping[str, Interval]], tau: float) -> str:
    """Return the verdict in words, and how much of the whole change is due to MPTs."""
    due = " and ".join(
        f"{one['mpts'].value:+.3g} of {one['all'].value:+.3g} ({step})" for step, one in attributions.items()
    )
    return f"tau {tau:g}: {_SENTENCES[verdict(attributions)]}. MPTs add {due}, in 1e-3 nats."
