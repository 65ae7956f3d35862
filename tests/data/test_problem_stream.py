"""The endless order over problems: epochs are permutations, and the cursor is the whole state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ulorl.data.problem_stream import ProblemStream


def take(stream: ProblemStream[int], n: int) -> list[int]:
    return [next(stream) for _ in range(n)]


@given(n=st.integers(1, 30), seed=st.integers(0, 2**32), epochs=st.integers(1, 3))
def test_each_epoch_has_each_item_once(n: int, seed: int, epochs: int) -> None:
    stream = ProblemStream(range(n), seed)
    for _ in range(epochs):
        assert sorted(take(stream, n)) == list(range(n))


@given(n=st.integers(1, 30), seed=st.integers(0, 2**32), before=st.integers(0, 70), after=st.integers(0, 70))
def test_resuming_from_a_cursor_continues_the_order(n: int, seed: int, before: int, after: int) -> None:
    stream = ProblemStream(range(n), seed)
    take(stream, before)
    assert stream.cursor == before
    assert take(ProblemStream(range(n), seed, stream.cursor), after) == take(stream, after)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    stream = ProblemStream(range(50), seed=1)
    orders = [take(stream, 50), take(stream, 50), take(ProblemStream(range(50), seed=2), 50)]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != list(range(50))


def test_no_items_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        ProblemStream([], seed=0)
