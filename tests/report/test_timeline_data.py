"""Which samples the timeline shows, and how many decode at once."""

from __future__ import annotations

import numpy as np

from ulorl.report.timeline_data import samples_at_once, shown_samples


def test_of_many_samples_a_few_are_shown() -> None:
    ids = np.arange(1000)
    assert shown_samples(ids[:40], 4) == list(range(40))
    whole = shown_samples(ids, 4)  # 250 groups: the first and the last, and 14 between them
    assert len(whole) == 64
    assert whole[:4] == [0, 1, 2, 3]
    assert whole[-4:] == [996, 997, 998, 999]
    assert shown_samples(ids, 500) == [*range(32), *range(500, 532)]


def test_samples_at_once_are_the_covered_time() -> None:
    """Spans [0, 4), [1, 3) and [3, 4): in parts of 2, 2 + 1 and 1 + 2 + 1 of 2 each."""
    starts, ends = np.array([0.0, 1, 3]), np.array([4.0, 3, 4])
    edges, decoding = samples_at_once(starts, ends, 4, parts=2)
    assert edges.tolist() == [0, 2, 4]
    assert decoding.tolist() == [1.5, 2]
