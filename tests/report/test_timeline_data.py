"""Which samples the timeline shows, and how many decode at once."""

from __future__ import annotations

import numpy as np

from ulorl.report.timeline_data import engine_load, samples_at_once, shown_engines, shown_samples


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


def test_engines_are_as_full_as_they_have_samples() -> None:
    """Engine 0 decodes one sample in [0, 4) and one in [2, 4), engine 1 one in [2, 4). 2 is the most of all, which
    stands for unknown slots. With 64 slots a sample is no change: the means are 1.5 and .5."""
    spans = [0, 1], np.array([0, 0, 1]), np.array([0.0, 2, 2]), np.array([4.0, 4, 4]), 4.0
    for slots in (2, 0):
        assert engine_load(*spans, slots, parts=4) == [[0, 0, 2, 1], [0, 2, 4, 2], [1, 0, 2, 0], [1, 2, 4, 1]]
    assert engine_load(*spans, 64, parts=4) == [[0, 0, 4, 1.5], [1, 0, 4, 0.5]]
    assert engine_load([], *spans[1:], 2) == []


def test_a_single_engine_is_not_shown_and_of_many_some_are() -> None:
    assert shown_engines(1) == []
    assert shown_engines(3) == [0, 1, 2]
    assert shown_engines(256) == [17 * at for at in range(16)]
