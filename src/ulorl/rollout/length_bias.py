"""Are the samples that train as long as those that were started? Where groups train as soon as they are finished, the
first steps train the short ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

KEPT = 0.9  # of all counts, from step to step: they cover about the last ten steps
_PER_OCTAVE = 4  # intervals of lengths between l and 2 l


class LengthBias:
    """The mean length of the samples that trained over the mean length of a sample that is started, lately.

    How long the started samples become is not known yet, and those that have ended are too short on average. So their
    mean is estimated as a period life table estimates a life expectancy (Kaplan and Meier 1958; with a constant hazard
    in each interval of lengths): of the tokens decoded at a length, so many were a sample's last. A sample that was
    stopped counts for as long as it was decoded. Beyond the longest output so far nothing is known, and nothing is
    counted: while no sample has had the time to become as long as the longest ones will be, the estimate is too low,
    and the bias is stronger than the ratio says.

    max_tokens: the global maximum output length L. state: of an earlier `LengthBias` with the same L, () for a new one.
    """

    def __init__(self, max_tokens: int, state: Sequence[float] = ()) -> None:
        octaves = np.arange(0, np.log2(max_tokens), 1 / _PER_OCTAVE)
        self._edges = np.unique(np.append(np.round(2**octaves), max_tokens))  # interval i ends with length edges[i]
        counts = np.zeros(2 * len(self._edges) + 2)
        counts[: len(state)] = state
        self._decoded, self._ended, self._trained = np.split(counts, [len(self._edges), 2 * len(self._edges)])

    @property
    def state(self) -> list[float]:
        """The counts, from which a resumed run goes on."""
        return [float(count) for count in np.concatenate([self._decoded, self._ended, self._trained])]

    def add(
        self, before: Sequence[int], after: Sequence[int], complete: Sequence[bool], trained: Sequence[int]
    ) -> None:
        """Count one step.

        before, after: the output tokens, before and after the step, of each sample that was decoded. complete: whether
        it ended by EOS. trained: the lengths of the samples that trained.
        """
        for counts in (self._decoded, self._ended, self._trained):
            counts *= KEPT
        self._decoded += self._tokens_by_length(after) - self._tokens_by_length(before)
        last = np.asarray(after)[np.asarray(complete, dtype=bool)]
        self._ended += np.bincount(np.searchsorted(self._edges, last), minlength=len(self._edges))
        self._trained += sum(trained), len(trained)

    @property
    def started_length(self) -> float | None:
        """The mean length of a sample that is started, in tokens; None before a token was decoded."""
        known = self._decoded > 0
        if not known.any():
            return None
        hazard = self._ended[known] / self._decoded[known]  # the probability that a token is the last one
        stay, widths = 1 - hazard, np.diff(self._edges, prepend=0)[known]
        with np.errstate(divide="ignore", invalid="ignore"):
            tokens = np.where(
                hazard > 0, (1 - stay**widths) / hazard, widths
            )  # in an interval, of a sample that enters
        entering = np.cumprod(np.append(1, stay**widths))[:-1]
        return float(entering @ tokens)

    @property
    def ratio(self) -> float | None:
        """The mean length of the samples that trained over `started_length`; None before one has trained."""
        tokens, samples = self._trained
        started = self.started_length
        return float(tokens / samples / started) if samples and started else None

    def _tokens_by_length(self, lengths: Sequence[int]) -> NDArray[np.float64]:
        """Return how many of the tokens of samples with these lengths are in each interval of lengths."""
        ascending = np.sort(np.asarray(lengths, dtype=np.float64))
        below = np.searchsorted(ascending, self._edges)  # samples that are shorter than each edge
        tokens = np.append(0, np.cumsum(ascending))[below] + (len(ascending) - below) * self._edges
        return np.diff(tokens, prepend=0)
