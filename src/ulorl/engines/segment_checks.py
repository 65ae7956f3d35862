"""Checks requests and segments, and records which requests are pending. Pure: no thread, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.types import Finish, Request, Sampling, Segment

ROUNDING = 1e-3  # nats above 0 that rounding may bring a log-prob to
_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)


class SegmentChecks:
    """Checks the segments of one model.

    eos_ids, vocabulary: of the model. sampling: the sampling whose log-probs are trained on; None when no log-probs
    are, as in an evaluation.
    """

    def __init__(self, eos_ids: Sequence[int], vocabulary: int, sampling: Sampling | None) -> None:
        self._eos_ids = np.array(sorted(set(eos_ids)), dtype=np.int32)
        self._vocabulary, self._sampling = vocabulary, sampling
        self._is_eos = np.isin(np.arange(vocabulary), self._eos_ids)  # by token id

    def check(self, segment: Segment, request: Request, version: int) -> None:
        """Raise ValueError when `segment` is not what `request` asked for, decoded with weights of `version`."""
        check_segment(
            segment,
            request,
            eos_ids=self._eos_ids,
            vocabulary=self._vocabulary,
            version=version,
            logprobs=request.sampling == self._sampling,
        )

    def all_correct(
        self, segments: Sequence[Segment], requests: Sequence[Request], version: int, *, aborted: bool = False
    ) -> bool:
        """Return whether `check` passes for every segment and its request. A check of all tokens at once, which is much
        faster than one of each segment; False, too, when a segment is unusual and `check` has to look at it.

        aborted: whether partial segments are usual."""
        lengths = [len(segment.tokens) for segment in segments]
        if not _usual(segments, requests, lengths, aborted):
            return False
        tokens, logprobs, versions = (
            np.concatenate([getattr(segment, name) for segment in segments])
            for name in ("tokens", "logprobs", "versions")
        )
        trained = [r.sampling is self._sampling or r.sampling == self._sampling for r in requests]
        if not all(trained):
            logprobs = logprobs[np.repeat(trained, lengths)]
        eos = Finish.EOS
        eos_at = np.cumsum(lengths)[[segment.finish is eos for segment in segments]] - 1
        return bool(
            ((tokens >= 0) & (tokens < self._vocabulary)).all()
            and (versions == version).all()
            and ((logprobs <= ROUNDING) & (logprobs > -np.inf)).all()
            and np.array_equal(np.flatnonzero(self._is_eos[tokens]), eos_at)
        )


class PendingRequests:
    """The requests that an engine was given and has not returned, in the order in which they were added."""

    def __init__(self, checks: SegmentChecks) -> None:
        self._checks = checks
        self._requests: dict[int, Request] = {}  # by sample id

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def require_new(self, request: Request) -> None:
        """Raise ValueError when the sample of the request is pending already."""
        if request.sample_id in self._requests:
            raise ValueError(f"sample {request.sample_id} is being decoded already")

    def add(self, request: Request) -> None:
        """Add a request. Raises ValueError when its sample is pending already."""
        self.require_new(request)
        self._requests[request.sample_id] = request

    def take(self, segment: Segment, version: int, *, aborted: bool = False) -> Segment:
        """Remove the request of a segment, which came back, and return the segment.

        version: of the engine's weights. aborted: whether the engine was asked to abort. Raises ValueError, and keeps
        the request, when none is pending or the segment is not what it asked for.
        """
        request = self._requests.get(segment.sample_id)
        if request is None:
            raise ValueError(f"sample {segment.sample_id} came back, which was not pending")
        self._checks.check(segment, request, version)
        if segment.finish is Finish.ABORT and not aborted:
            raise ValueError(f"segment of sample {segment.sample_id}: stopped by the engine itself")
        del self._requests[segment.sample_id]
        return segment

    def take_all(self, segments: Sequence[Segment], version: int, *, aborted: bool = False) -> Iterator[Segment]:
        """Do what `take` does for each of many segments, and yield them one after the other. Raises ValueError at the
        first that is wrong."""
        asked = {id: self._requests[id] for segment in segments if (id := segment.sample_id) in self._requests}
        requests = list(asked.values())
        if len(asked) == len(segments) > 0 and self._checks.all_correct(segments, requests, version, aborted=aborted):
            for id in asked:
                del self._requests[id]
            yield from segments
        else:
            for segment in segments:
                yield self.take(segment, version, aborted=aborted)

    def check_number(self, pending: int) -> None:
        """Raise ValueError when the engine says that another number of requests is pending."""
        if pending != len(self._requests):
            raise ValueError(f"{pending} requests are pending, {len(self._requests)} have not come back")

    def clear(self) -> None:
        """Remove every request."""
        self._requests.clear()


def _usual(segments: Sequence[Segment], requests: Sequence[Request], lengths: Sequence[int], aborted: bool) -> bool:
    """Return whether all segments are of int32 and float32, of one length each, and end as their requests let them;
    aborted: or by an abort."""
    # local names: Python 3.11 takes a function call for each look-up in an enum
    eos, length, partial = Finish.EOS, Finish.LENGTH, Finish.ABORT if aborted else Finish.EOS
    for segment, request, n in zip(segments, requests, lengths, strict=True):
        tokens, logprobs, versions, budget = segment.tokens, segment.logprobs, segment.versions, request.max_new_tokens
        finish = segment.finish
        fewest = 1 if finish is eos else budget if finish is length else 0 if finish is partial else budget + 1
        if not (
            tokens.dtype == versions.dtype == _INT32
            and logprobs.dtype == _FLOAT32
            and tokens.shape == logprobs.shape == versions.shape == (n,)
            and segment.sample_id == request.sample_id
            and fewest <= n <= budget
        ):
            return False
    return True


def check_request(request: Request, *, vocabulary: int, max_length: int) -> None:
    """Raise ValueError when a request is empty, does not fit the engine's context or cannot be sampled."""
    what, tokens, how = f"request of sample {request.sample_id}", request.tokens, request.sampling
    if not len(request.prompt):
        raise ValueError(f"{what}: its prompt must not be empty")
    if request.max_new_tokens < 1:
        raise ValueError(f"{what}: max_new_tokens={request.max_new_tokens} must be at least 1")
    if len(tokens) + request.max_new_tokens > max_length:
        raise ValueError(
            f"{what}: {len(tokens)} tokens and a budget of {request.max_new_tokens} exceed the engine's context "
            f"length of {max_length}"
        )
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise ValueError(f"{what}: token ids must lie in 0..{vocabulary - 1}, found {tokens.min()}..{tokens.max()}")
    if not (0 <= how.temperature < np.inf and 0 < how.top_p <= 1 and how.top_k >= 0):
        raise ValueError(f"{what}: {how} needs temperature >= 0, 0 < top_p <= 1 and top_k >= 0")


def check_segment(
    segment: Segment, request: Request, *, eos_ids: NDArray[np.int32], vocabulary: int, version: int, logprobs: bool
) -> None:
    """Raise ValueError when a segment is not what `request` asked for. Linear in the number of its tokens.

    eos_ids, vocabulary: of the model. version: of the engine's weights. logprobs: whether log-probs must be numbers; an
    engine that cannot compute them for the sampling of a request returns NaN.
    """
    what, tokens, n = f"segment of sample {request.sample_id}", segment.tokens, len(segment.tokens)
    for name, array, kinds in (
        ("tokens", tokens, "iu"),
        ("logprobs", segment.logprobs, "f"),
        ("versions", segment.versions, "iu"),
    ):
        if array.shape != (n,) or array.dtype.kind not in kinds:
            raise ValueError(
                f"{what}: {name} of shape {array.shape} and type {array.dtype}, its {n} tokens need ({n},)"
            )
    if segment.sample_id != request.sample_id:
        raise ValueError(f"{what}: came back as sample {segment.sample_id}'s")
    if n > request.max_new_tokens:
        raise ValueError(f"{what}: {n} tokens, asked for {request.max_new_tokens} at most")
    if n and not (tokens.min() >= 0 and tokens.max() < vocabulary):
        raise ValueError(f"{what}: token ids {tokens.min()}..{tokens.max()}, the vocabulary is 0..{vocabulary - 1}")
    if (other := segment.versions != version).any():
        raise ValueError(f"{what}: version {segment.versions[other][0]}, the weights are version {version}")
    wrong = ~((segment.logprobs <= ROUNDING) & (segment.logprobs > -np.inf))
    if logprobs and wrong.any():
        raise ValueError(f"{what}: {wrong.sum()} log-probs are no finite number up to 0: {segment.logprobs[wrong][0]}")
    _check_end(what, segment, request, np.flatnonzero(np.isin(tokens, eos_ids)))


def _check_end(what: str, segment: Segment, request: Request, eos_at: NDArray[Any]) -> None:
    n = len(segment.tokens)
    if segment.finish is Finish.EOS:
        if eos_at.tolist() != [n - 1]:
            raise ValueError(f"{what}: finish 'eos' with {n} tokens and EOS at {eos_at.tolist()}")
    elif len(eos_at):
        raise ValueError(f"{what}: finish {segment.finish.value!r} with {n} tokens and EOS at {eos_at.tolist()}")
    elif segment.finish is Finish.LENGTH and n < request.max_new_tokens:
        raise ValueError(f"{what}: finish 'length' after {n} of {request.max_new_tokens} tokens")
