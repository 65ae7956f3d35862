"""Segments against their requests, and the requests that are pending. Every fault: tests/engines/test_retrying.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ulorl.engines.segment_checks import PendingRequests, SegmentChecks
from ulorl.types import Finish, Request, Sampling, Segment

EOS, VERSION = 0, 3
ROLLOUT = Sampling()
CHECKS = SegmentChecks([EOS], 50, ROLLOUT)


def request(id: int, sampling: Sampling = ROLLOUT) -> Request:
    return Request(id, np.array([7, 8], np.int32), 2, 6, sampling, id)


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
