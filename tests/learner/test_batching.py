from __future__ import annotations

import csv
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paths import SHARED
from ulorl.learner.batching import Layout, Row, collate, microbatches, padding_share

LENGTHS = SHARED / "lengths"


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
    # Longest first: 9 alone (2 x 9 > 12). The fewest are [6 5] [3 3 2 1], 12 + 12 tokens, 4 of 33 padding: more than a
    # tenth, until one counts for 1 token. Then [3 3] [2 1] are 6 + 4, of 31 tokens 2 are padding, and an equal cost to
    # [3 3 2] [1], 9 + 1; the last part is the larger one.
    batches = microbatches([3, 9, 1, 6, 3, 5, 2], 12)
    assert batches == [[1], [3, 5], [0, 4], [6, 2]]
    assert padding_share([3, 9, 1, 6, 3, 5, 2], batches) == pytest.approx(2 / 31)
    assert microbatches([20, 1, 1], 12) == [[0], [1, 2]]  # longer than the budget: alone
    assert microbatches([], 12) == []
    assert padding_share([], []) == 0.0


def test_a_microbatch_counts_for_128_tokens() -> None:
    # one micro-batch has 3 x 42 = 126 tokens of padding, less than 128; 3 x 43 = 129 are more
    assert microbatches([842, 800, 800, 800], 8192) == [[0, 1, 2, 3]]
    assert microbatches([843, 800, 800, 800], 8192) == [[0], [1, 2, 3]]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_every_sample_once_within_the_budget_and_a_tenth_of_padding(lengths: list[int], budget: int) -> None:
    batches = microbatches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    taken = [lengths[i] for batch in batches for i in batch]
    assert taken == sorted(lengths, reverse=True)
    assert padding_share(lengths, batches) < 0.1
    assert microbatches(lengths, budget) == batches


@given(st.lists(st.integers(500, 1000), min_size=1, max_size=8), st.integers(500, 5000))
def test_no_other_cut_is_cheaper(lengths: list[int], budget: int) -> None:
    """Beside every way to cut the samples, longest first, into micro-batches of the budget."""
    order = sorted(lengths, reverse=True)

    def cost(parts: list[list[int]]) -> float:
        return sum(128 + len(part) * part[0] for part in parts)

    every = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut]
        parts = [order[a:b] for a, b in itertools.pairwise([0, *ends, len(order)])]
        if all(len(part) == 1 or len(part) * part[0] <= budget for part in parts):
            every.append(parts)
    cheapest = [parts for parts in every if cost(parts) == min(map(cost, every))]
    found = [[lengths[i] for i in batch] for batch in microbatches(lengths, budget)]
    tokens = [sum(len(part) * part[0] for part in parts) for parts in cheapest]
    assert found in cheapest or max(tokens) - sum(order) >= 0.1 * max(tokens)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, found 0"):
        microbatches([1], 0)


def test_packed_microbatches_by_hand() -> None:
    # 9 leaves 3 of 12; 6 leaves 6; 5 goes to the 6, leaves 1; 3 (the first one) to the 9, leaves 0; 3 alone, leaves 9;
    # 2 to that one; 1 to the 6 and the 5.
    assert microbatches([3, 9, 1, 6, 3, 5, 2], 12, "packed") == [[1, 0], [3, 5, 2], [4, 6]]
    assert microbatches([20, 1, 1], 12, "packed") == [[0], [1, 2]]  # longer than the budget: alone


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_packed_every_sample_once_within_the_budget_and_no_two_fit_together(lengths: list[int], budget: int) -> None:
    batches = microbatches(lengths, budget, "packed")
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(len(batch) == 1 or n <= budget for batch, n in zip(batches, tokens, strict=True))
    assert all(a + b > budget for a, b in itertools.combinations(tokens, 2))
    assert [batch[0] for batch in batches] == sorted((batch[0] for batch in batches), key=lambda i: (-lengths[i], i))


def real_lengths(samples: int) -> list[int]:
    """Prompt and output tokens of samples of reasoning models, and draws from a production length distribution."""
    if not LENGTHS.exists():
        pytest.skip("the real length files are not beside this repository")
    draw = np.random.default_rng(0)
    with (LENGTHS / "response_tokens.csv").open() as lines:
        measured = [int(r["prompt_tokens"]) + int(r["response_tokens"]) for r in csv.DictReader(lines)]
    with (LENGTHS / "deepseek_r1_production_output_tokens.csv").open() as lines:
        rows = [(int(r["output_tokens"]), float(r["probability"])) for r in csv.DictReader(lines)]
    outputs, share = (np.array(column) for column in zip(*rows, strict=True))
    produced = draw.choice(outputs, samples, p=share / share.sum())
    return [*draw.permutation(measured)[:samples].tolist(), *produced.tolist()]


@pytest.mark.parametrize("budget", ["the longest sample", 16384, 131072])
def test_padding_stays_small_on_real_lengths(budget: str | int) -> None:
    """Of the samples of one step of the paper, 1,024, from each file."""
    lengths = real_lengths(1024)
    for part in (lengths[:1024], lengths[1024:]):
        tokens = budget if isinstance(budget, int) else max(part)
        assert padding_share(part, microbatches(part, tokens)) < 0.1
        packed = microbatches(part, tokens, "packed")
        assert sum(part) <= len(packed) * max(tokens, *part)
        assert len(packed) <= len(microbatches(part, tokens))
        rows = [[row([1], [2] * (part[i] - 1)) for i in batch] for batch in packed[:3]]
        for batch in rows:  # as many tokens as the samples have
            assert collate(batch, 0, "cpu", "packed").input_ids.shape == (1, sum(map(len, batch)))


def test_collate_by_hand() -> None:
    batch = collate([row([7, 8], [1, 2, 3], [-0.1, -0.2, -0.3]), row([9], [4], [-0.4])], pad_id=50, device="cpu")
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 50, 50, 50]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]] * 2
    # Token 1 at position 2 is predicted at position 1 (the prompt's last token), 2 at 2, 3 at 3; in the second row
    # (flat rows 5 to 9) token 4 at position 1 is predicted at position 0.
    assert batch.source_N.tolist() == [1, 2, 3, 5]
    assert batch.targets_N.tolist() == [1, 2, 3, 4]
    assert batch.sample_N.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(batch.recorded_N, torch.tensor([-0.1, -0.2, -0.3, -0.4]))
    for name in ("input_ids", "position_ids", "source_N", "targets_N", "sample_N"):
        assert getattr(batch, name).dtype == torch.int64


def test_collate_packed_by_hand() -> None:
    rows = [row([7, 8], [1, 2, 3]), row([9], [4]), row([6, 5], [5])]
    batch = collate(rows, pad_id=50, device="cpu", layout="packed")
    assert batch.input_ids.tolist() == [[7, 8, 1, 2, 3, 9, 4, 6, 5, 5]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1, 2]]
    # 1 2 3 at 2 3 4 are predicted one before; 4 at 6 at 5, the prompt 9; 5 at 9 at 8, the prompt's last
    assert batch.source_N.tolist() == [1, 2, 3, 5, 8]
    assert batch.targets_N.tolist() == [1, 2, 3, 4, 5]
    assert batch.sample_N.tolist() == [0, 0, 0, 1, 2]


@given(rows_of_any_length, st.sampled_from(["padded", "packed"]))
def test_collate_equals_a_direct_loop(rows: list[Row], layout: Layout) -> None:
    batch = collate(rows, pad_id=0, device="cpu", layout=layout)
    ids, positions = batch.input_ids.flatten(), batch.position_ids.flatten()
    n = start = 0
    for b, r in enumerate(rows):
        whole = [*r.prompt.tolist(), *r.tokens.tolist()]
        stop = start + (max(map(len, rows)) if layout == "padded" else len(whole))
        assert ids[start:stop].tolist() == whole + [0] * (stop - start - len(whole))
        assert positions[start:stop].tolist() == list(range(stop - start))
        for position in range(1, len(whole)):
            if position < len(r.prompt):
                continue  # the prompt is not trained
            assert batch.source_N[n] == start + position - 1
            assert batch.targets_N[n] == whole[position] == ids[start + position]
            assert batch.sample_N[n] == b
            assert batch.recorded_N[n] == r.logprobs[position - len(r.prompt)]
            n += 1
        start = stop
    assert start == len(ids)
    assert n == len(batch.targets_N) == len(batch.source_N) == len(batch.sample_N) == len(batch.recorded_N)


def test_a_model_that_sees_its_prefix_predicts_each_token() -> None:
    """A model substitute: the hidden state at a position is the sum of the sample's ids up to it. If source_N were
    off by one, the sum before the target would be another."""
    rows = [row([3, 1], [4, 1, 5]), row([9, 2, 6], [5]), row([5], [3, 5, 8, 9, 7])]
    padded = collate(rows, pad_id=0, device="cpu")
    packed = collate(rows, pad_id=0, device="cpu", layout="packed")
    sums = torch.cat([torch.tensor([*r.prompt, *r.tokens]).cumsum(0) for r in rows])
    for batch, hidden in ((padded, padded.input_ids.cumsum(1).flatten()), (packed, sums)):
        hidden_N = hidden[batch.source_N]
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
