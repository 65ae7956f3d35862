"""How a prefill is divided into passes, by the engine and by the planner."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ulorl.engines.padding import padded_passes


def test_a_prefill_pass_pads_little() -> None:
    """Lengths of 100, 90, 30, 20 and 10 tokens. Two of 100 have 200 tokens, which fits into 200 but not into
    199, and pad 10. Three of 30 pad 90 - 60 = 30, and with one of 90, 180 - 120 = 60."""
    of_all = [100, 90, 30, 20, 10]

    def lengths(tokens: int, padding: int) -> list[list[int]]:
        return [of_all[rows] for rows in padded_passes(of_all, tokens, padding)]

    assert lengths(200, 30) == [[100, 90], [30, 20, 10]]
    assert lengths(199, 30) == [[100], [90], [30, 20, 10]]
    assert lengths(200, 29) == [[100, 90], [30, 20], [10]]
    assert lengths(1000, 1000) == [[100, 90, 30, 20, 10]]
    assert lengths(5, 0) == [[100], [90], [30], [20], [10]]


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 500), st.integers(0, 200))
def test_every_sequence_is_in_one_pass_within_both_limits(lengths: list[int], tokens: int, padding: int) -> None:
    lengths.sort(reverse=True)
    passes = [lengths[rows] for rows in padded_passes(lengths, tokens, padding)]
    assert [length for one in passes for length in one] == lengths
    for one in passes:
        padded = len(one) * one[0]
        assert len(one) == 1 or (padded <= tokens and padded - sum(one) <= padding)
