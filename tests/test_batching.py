from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ulorl.learner.batching import Row, collate, microbatches, padding_share

LENGTHS = Path(__file__).resolve().parents[1] / "../shared/data/lengths"


def row(prompt: list[int], tokens: list[int], logprobs: list[float] | None = None) -> Row:
    recorded = [-float(t) for t in tokens] if logprobs is None else logprobs
    versions = np.arange(len(tokens), dtype=np.int32)
    return Row(np.array(prompt, np.int32), np.array(tokens, np.int32), np.array(recorded, np.float32), versions)


rows_of_any_length = st.lists(
    st.builds(
        row,
        st.lists(st.integers(1, 99), min_size=1, max_size=6),
        st.lists(st.integers(1, 99), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
)


def test_microbatches_by_hand() -> None:
    # Longest first: 9 alone (2 x 9 > 12); 6 with 5 (2 x 6 = 12; 3 x 6 > 12); 3 3 2 1 (4 x 3 = 12)
    assert microbatches([3, 9, 1, 6, 3, 5, 2], 12) == [[1], [3, 5], [0, 4, 6, 2]]
    assert microbatches([20, 1, 1], 12) == [[0], [1, 2]]  # longer than the budget: alone
    assert microbatches([], 12) == []
    # padding: 0 of 9, 1 of 12, 3 of 12 -> 4 of 33
    assert padding_share([3, 9, 1, 6, 3, 5, 2], [[1], [3, 5], [0, 4, 6, 2]]) == pytest.approx(4 / 33)
    assert padding_share([], []) == 0.0


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_every_sample_once_and_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = microbatches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    taken = [lengths[i] for batch in batches for i in batch]
    assert taken == sorted(lengths, reverse=True)
    for batch, _following in itertools.pairwise(batches):  # no batch ends while the next sample fits
        assert (len(batch) + 1) * lengths[batch[0]] > budget
    assert microbatches(lengths, budget) == batches


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        microbatches([1], 0)


def test_padding_stays_small_on_real_lengths() -> None:
    file = LENGTHS / "response_tokens.csv"
    if not file.exists():
        pytest.skip("the real length files are not beside this repository")
    with file.open() as lines:
        lengths = [int(r["prompt_tokens"]) + int(r["response_tokens"]) for r in csv.DictReader(lines)]
    lengths = np.random.default_rng(0).permutation(lengths)[:1024].tolist()  # the samples of one step of the paper
    longest = max(lengths)
    assert padding_share(lengths, microbatches(lengths, longest)) < 0.1


def test_collate_by_hand() -> None:
    batch = collate([row([7, 8], [1, 2, 3], [-0.1, -0.2, -0.3]), row([9], [4], [-0.4])], pad_id=50, device="cpu")
    assert len(batch) == 2
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 50, 50, 50]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    # Token 1 at position 2 is predicted at position 1 (the prompt's last token), 2 at 2, 3 at 3; in the second row
    # (flat rows 5 to 9) token 4 at position 1 is predicted at position 0.
    assert batch.source_N.tolist() == [1, 2, 3, 5]
    assert batch.targets_N.tolist() == [1, 2, 3, 4]
    assert batch.sample_N.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(batch.recorded_N, torch.tensor([-0.1, -0.2, -0.3, -0.4]))
    for name in ("input_ids", "attention_mask", "position_ids", "source_N", "targets_N", "sample_N"):
        assert getattr(batch, name).dtype == torch.int64


@given(rows_of_any_length)
def test_collate_equals_a_direct_loop(rows: list[Row]) -> None:
    batch = collate(rows, pad_id=0, device="cpu")
    width = batch.input_ids.shape[1]
    n = 0
    for b, r in enumerate(rows):
        whole = [*r.prompt.tolist(), *r.tokens.tolist()]
        assert batch.input_ids[b].tolist() == whole + [0] * (width - len(whole))
        assert batch.attention_mask[b].tolist() == [1] * len(whole) + [0] * (width - len(whole))
        for position in range(1, len(whole)):
            if position < len(r.prompt):
                continue  # the prompt is not trained
            source = divmod(int(batch.source_N[n]), width)
            assert source == (b, position - 1)
            assert batch.targets_N[n] == whole[position] == batch.input_ids[b, position]
            assert batch.sample_N[n] == b
            assert batch.recorded_N[n] == r.logprobs[position - len(r.prompt)]
            n += 1
    assert n == len(batch.targets_N) == len(batch.source_N) == len(batch.sample_N) == len(batch.recorded_N)


def test_a_model_that_sees_its_prefix_predicts_each_token() -> None:
    """A stand-in for a model: the hidden state at a position is the sum of the ids up to it. If source_N were off by
    one, the sum before the target would be another."""
    rows = [row([3, 1], [4, 1, 5]), row([9, 2, 6], [5]), row([5], [3, 5, 8, 9, 7])]
    batch = collate(rows, pad_id=0, device="cpu")
    hidden_N = batch.input_ids.cumsum(1).flatten()[batch.source_N]
    assert hidden_N.tolist() == [4, 8, 9, 17, 5, 8, 13, 21, 30]
    assert (hidden_N + batch.targets_N).tolist() == [8, 9, 14, 22, 8, 13, 21, 30, 37]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], [1, 2], [-0.1]), "2 output tokens but 1 recorded log-probs"),
        (([1], [1], [-0.1, -0.2]), "1 output tokens but 2 recorded log-probs"),
        (([], [1], [-0.1]), "0 prompt and 1 output tokens"),
        (([1], [], []), "1 prompt and 0 output tokens"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(*arguments)
