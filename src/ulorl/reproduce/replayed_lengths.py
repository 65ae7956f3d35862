"""Output lengths that are replayed: which lengths, and an engine whose outputs end at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ulorl.engines.engine import Engine
from ulorl.engines.forwarding import ForwardingEngine
from ulorl.planning.group_lengths import GroupLengths
from ulorl.types import Finish, Request, Segment

_QUANTILES = 65_536


@dataclass(frozen=True)
class RepeatedLengths:
    """The lengths of P groups of G samples, which come again and again: group P is like group 0.

    A schedule that trains P groups in steady state has then trained each of them once, so that all schedules are
    compared on the same lengths. lengths: [P, G].
    """

    lengths: NDArray[np.int64]

    def of_group(self, group: int) -> Sequence[int]:
        """Return the lengths of the samples of a group, in tokens."""
        return [int(length) for length in self.lengths[group % len(self.lengths)]]

    def of_sample(self, sample: int) -> int:
        """Return the length of a sample, whose id is group id * G + member."""
        group, member = divmod(sample, self.lengths.shape[1])
        return int(self.lengths[group % len(self.lengths), member])


def repeated_lengths(source: GroupLengths, groups: int, group: int, max_tokens: int, seed: int = 0) -> RepeatedLengths:
    """Return lengths that stand for `source` as well as P = `groups` groups can: its evenly spaced quantiles.

    Groups are drawn, and the sample of rank i of n = P G gets the quantile (i + 1/2) / n, so that few groups have the
    mean and the tail of many, and siblings stay alike. Lengths are cut at L = `max_tokens`.
    """
    drawn = source.draw(seed, 0, groups, group)
    many = np.sort(source.draw(seed, groups, _QUANTILES // group, group), axis=None)
    ranks = drawn.ravel().argsort(kind="stable").argsort(kind="stable")
    at = ((ranks + 0.5) / drawn.size * many.size).astype(np.int64)
    return RepeatedLengths(np.minimum(many[at], max_tokens).reshape(drawn.shape))


class ReplayEngine(ForwardingEngine):
    """An engine around one that never draws an EOS token: it ends each output at a given length, as an EOS would.

    A request that would decode further gets a smaller budget, and its last segment the finish EOS; an output of L
    tokens keeps the finish LENGTH. All tokens have the version `version`, as the inner engine may serve several runs.

    length: of the whole output of a sample, by its id. max_tokens: L. again_tokens: those of carried samples that the
    inner engine had to compute again; each enters with all its tokens but the last, which is its first decode input.
    """

    def __init__(self, engine: Engine, length: Callable[[int], int], max_tokens: int) -> None:
        super().__init__(engine)
        self.version = 0
        self.again_tokens = 0
        self._length, self._max_tokens = length, max_tokens
        self._requests: dict[int, Request] = {}

    def add(self, request: Request) -> None:
        """Queue one request, with a budget that ends where the output does."""
        left = self._length(request.sample_id) - request.output_length
        self._requests[request.sample_id] = request
        super().add(replace(request, max_new_tokens=min(left, request.max_new_tokens)))

    def step(self) -> list[Segment]:
        """Make a step of the inner engine."""
        return [self._replayed(segment) for segment in super().step()]

    def abort(self) -> list[Segment]:
        """Stop every request and return the partial segments."""
        return [self._replayed(segment) for segment in super().abort()]

    def _replayed(self, segment: Segment) -> Segment:
        request, n = self._requests.pop(segment.sample_id), len(segment)
        if n and request.output_length:
            self.again_tokens += request.length - 1
        length, end = self._length(segment.sample_id), request.output_length + n
        ends = segment.finish is Finish.LENGTH and end == length < self._max_tokens
        return replace(
            segment,
            versions=np.full(n, self.version, np.int32),
            finish=Finish.EOS if ends else segment.finish,
        )
