"""What an update computed of the single tokens of a few samples, which a run stores for its report.

Shapes: T tokens of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulorl.learner.experience import Experience


@dataclass(frozen=True, eq=False)
class TokenValues:
    """The entropy of the policy at each token, in nats [T], and whether the token is left out of the policy loss [T]:
    under the weights that trained on the sample."""

    entropy: NDArray[np.float32]
    masked: NDArray[np.bool_]


def observed_samples(experience: Sequence[Experience], number: int) -> frozenset[int]:
    """Return the ids of the samples to observe, at most `number`: right and wrong ones in turn, of each those that most
    versions wrote, and of these the oldest."""
    if not number:
        return frozenset()
    # A sample's versions rise along its tokens, so they change as often as there are further ones.
    changes = [int(np.count_nonzero(np.diff(one.row.versions))) for one in experience]
    order = [one for _, one in sorted(zip(changes, experience, strict=True), key=lambda x: (-x[0], x[1].sample_id))]
    sides = [[one.sample_id for one in order if one.correct is correct] for correct in (True, False)]
    turns = [side[turn] for turn in range(len(order)) for side in sides if turn < len(side)]
    return frozenset(turns[:number])


def split_values(
    entropy: NDArray[np.float32], kept: NDArray[np.bool_], experience: Sequence[Experience], observed: frozenset[int]
) -> dict[int, TokenValues]:
    """Return the values of the observed samples of a micro-batch by their ids.

    entropy, kept: of all tokens of the micro-batch, in the order of `experience`, its samples.
    """
    ends = np.cumsum([len(one.row.tokens) for one in experience]).tolist()
    starts = [0, *ends[:-1]]
    return {
        one.sample_id: TokenValues(entropy[start:end].copy(), ~kept[start:end])
        for one, start, end in zip(experience, starts, ends, strict=True)
        if one.sample_id in observed
    }
