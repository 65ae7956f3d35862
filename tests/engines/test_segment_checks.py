"""Segments against their requests, and the requests that are pending. Every fault: tests/engines/test_retrying.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.engines.segment_checks import PendingRequests, SegmentChecks
from ulorl.types import Finish, Request, Sampling, Segment

EOS, VERSION = 0, 3
ROLLOUT = Sampling()
CHECKS = SegmentChecks([EOS], 50, ROLLOUT)


def request(id: int, sampling: Sampling = ROLLOUT) -> Request:
    return Request(id, np.array([7, 8], np.int32), 6, sampling, id)


def segment(id: int, logprob: float = -1.0, finish: Finish = Finish.EOS) -> Segment:
    tokens = np.array([1, EOS if finish is Finish.EOS else 2], np.int32)
    return Segment(id, tokens, np.full(2, logprob, np.float32), np.full(2, VERSION, np.int32), finish)


def test_log_probs_that_nobody_trains_on_may_be_missing() -> None:
    """vLLM gives NaN for another sampling than the rollout's."""
    greedy = request(0, Sampling(temperature=0))
    CHECKS.check(segment(0, np.nan), greedy, VERSION)
    SegmentChecks([EOS], 50, None).check(segment(0, np.nan), request(0), VERSION)
    with pytest.raises(ValueError, match="2 log-probs are no finite number"):
        CHECKS.check(segment(0, np.nan), request(0), VERSION)


def test_a_request_is_pending_until_a_correct_segment_comes_back() -> None:
    pending = PendingRequests(CHECKS)
    for id in (4, 2, 3):
        pending.add(request(id))
    with pytest.raises(ValueError, match="sample 2 is being decoded already"):
        pending.add(request(2))
    for wrong in (segment(9), replace(segment(2), versions=np.full(2, VERSION - 1)), segment(2, finish=Finish.ABORT)):
        with pytest.raises(ValueError, match="sample"):
            pending.take(wrong, VERSION)
    assert [one.sample_id for one in pending] == [4, 2, 3]
    pending.take(segment(2), VERSION)
    pending.take(segment(4, finish=Finish.ABORT), VERSION, aborted=True)
    pending.check_number(1)
    with pytest.raises(ValueError, match="2 requests are pending, 1 have not come back"):
        pending.check_number(2)
    with pytest.raises(ValueError, match="which was not pending"):
        pending.take(segment(2), VERSION)


# Many segments at once, against one after the other

_CHANGES: dict[str, Callable[[Segment], dict[str, Any]]] = {
    "another sample": lambda _: {"sample_id": 99},
    "another pending sample": lambda s: {"sample_id": s.sample_id // 2},
    "negative token": lambda s: {"tokens": np.where(s.tokens == 2, -1, s.tokens).astype(np.int32)},
    "token beyond the vocabulary": lambda s: {"tokens": np.where(s.tokens == 2, 50, s.tokens).astype(np.int32)},
    "EOS inside": lambda s: {"tokens": np.where(s.tokens == 2, EOS, s.tokens).astype(np.int32)},
    "no EOS": lambda s: {"tokens": np.where(s.tokens == EOS, 2, s.tokens).astype(np.int32)},
    "wide tokens": lambda s: {"tokens": s.tokens.astype(np.int64)},
    "narrow tokens": lambda s: {"tokens": s.tokens.astype(np.int8)},
    "true and false": lambda s: {"tokens": s.tokens.astype(bool)},
    "tokens in a column": lambda s: {"tokens": s.tokens[:, None]},
    "a log-prob too few": lambda s: {"logprobs": s.logprobs[1:]},
    "not a number": lambda s: {"logprobs": s.logprobs * np.float32(np.nan)},
    "minus infinity": lambda s: {"logprobs": s.logprobs * np.float32(np.inf)},
    "positive": lambda s: {"logprobs": -s.logprobs},
    "rounded above 0": lambda s: {"logprobs": np.full_like(s.logprobs, 5e-4)},
    "double log-probs": lambda s: {"logprobs": s.logprobs.astype(np.float64)},
    "whole log-probs": lambda s: {"logprobs": np.full(len(s.tokens), -1)},
    "older version": lambda s: {"versions": s.versions - 1},
    "versions as floats": lambda s: {"versions": s.versions.astype(np.float32)},
    "ends by length": lambda _: {"finish": Finish.LENGTH},
    "ends by EOS": lambda _: {"finish": Finish.EOS},
    "aborted": lambda _: {"finish": Finish.ABORT},
    "shorter": lambda s: {name: getattr(s, name)[:-1] for name in ("tokens", "logprobs", "versions")},
    "longer": lambda s: {name: np.repeat(getattr(s, name), 7) for name in ("tokens", "logprobs", "versions")},
    "empty": lambda s: {name: getattr(s, name)[:0] for name in ("tokens", "logprobs", "versions")},
}


def decoded(request: Request, length: int) -> Segment:
    """A correct segment: EOS at the end when it is shorter than the budget."""
    ends = length < request.max_new_tokens
    tokens = np.array([2] * (length - ends) + [EOS] * ends, np.int32)
    logprobs = np.full(length, -1.0 if request.sampling == ROLLOUT else np.nan, np.float32)
    finish = Finish.EOS if ends else Finish.LENGTH
    return Segment(request.sample_id, tokens, logprobs, np.full(length, VERSION, np.int32), finish)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Request], list[Segment]]:
    """Requests and segments that came back for some of them, of which a few are wrong, unusual, or come twice."""
    count = draw(st.integers(2, 8))
    greedy = draw(st.sets(st.integers(0, count - 1), max_size=2))
    requests = [request(id, Sampling(temperature=0) if id in greedy else ROLLOUT) for id in range(count)]
    ids = draw(st.permutations(range(count)))[: draw(st.integers(1, count))]
    segments = [decoded(requests[id], draw(st.integers(1, 6))) for id in ids]
    for at in draw(st.lists(st.integers(0, len(segments) - 1), max_size=2)):
        changed = copy(segments[at])
        for name, value in _CHANGES[draw(st.sampled_from(sorted(_CHANGES)))](changed).items():
            object.__setattr__(changed, name, value)  # past the checks of `Segment`
        segments[at] = changed
    if draw(st.booleans()) and draw(st.booleans()):
        segments.append(segments[0])
    return requests, segments


def outcome(pending: PendingRequests, taken: Iterator[Segment]) -> tuple[list[int], str, list[int]]:
    """The segments that were taken, the error that ended it, and the requests that are pending then."""
    ids, error = [], ""
    try:
        for one in taken:
            ids.append(id(one))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return ids, error, [request.sample_id for request in pending]


@given(batches(), st.booleans())
@settings(max_examples=250, deadline=None)
def test_many_segments_are_taken_as_one_after_the_other(
    batch: tuple[list[Request], list[Segment]], aborted: bool
) -> None:
    requests, segments = batch
    found = []
    for together in (True, False):
        pending = PendingRequests(CHECKS)
        for one in requests:
            pending.add(one)
        if together:
            taken: Iterator[Segment] = pending.take_all(segments, VERSION, aborted=aborted)
        else:
            taken = (pending.take(segment, VERSION, aborted=aborted) for segment in segments)
        found.append(outcome(pending, taken))
    assert found[0] == found[1]


@pytest.mark.parametrize("change", _CHANGES)
def test_the_check_of_many_accepts_nothing_that_the_check_of_one_refuses(change: str) -> None:
    """Each change alone in a batch, at every length. The batch without a change is accepted, so that the fast check is
    in use at all."""
    requests = [request(id) for id in range(4)]
    for length in range(1, 7):
        segments = [decoded(one, length) for one in requests]
        partial = replace(segments[1], finish=Finish.ABORT)
        assert CHECKS.all_correct([partial], [requests[1]], VERSION, aborted=True) == (partial.tokens[-1] != EOS)
        assert not CHECKS.all_correct([partial], [requests[1]], VERSION)
        assert CHECKS.all_correct(segments, requests, VERSION)
        for name, value in _CHANGES[change](segments[2]).items():
            object.__setattr__(segments[2], name, value)
        if CHECKS.all_correct(segments, requests, VERSION):
            CHECKS.check(segments[2], requests[2], VERSION)
