"""Turns samples into micro-batches by token budget.

Only this file shifts tokens: the hidden state at position p - 1 predicts the token at position p.

Shapes: B samples, S sequence, N output tokens of a batch, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.types import LogProbs, Tokens, Versions

Layout = Literal["padded", "packed"]
MAX_PADDING = 0.1  # of all tokens of an update's padded micro-batches
OVERHEAD = 128.0  # tokens that take as long as one more micro-batch (a small model on a CPU; fewer for a larger one)


@dataclass(frozen=True, eq=False)
class Row:
    """One finished sample as the learner sees it."""

    prompt: Tokens  # at least one token
    tokens: Tokens  # output, at least one token
    logprobs: LogProbs  # of each output token, as recorded when it was generated
    versions: Versions  # the version that generated each output token
    learner_logprobs: LogProbs | None = None  # of the learner under that version, where they were recorded

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.logprobs) == len(self.versions):
            raise ValueError(
                f"{len(self.tokens)} output tokens but {len(self.logprobs)} recorded log-probs and "
                f"{len(self.versions)} versions; one each is needed"
            )
        if not len(self.prompt) or not len(self.tokens):
            raise ValueError(f"{len(self.prompt)} prompt and {len(self.tokens)} output tokens; each must be at least 1")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.tokens)


_ONE = np.zeros(1, np.int32)
PLACEHOLDER = Row(_ONE, _ONE, _ONE.astype(np.float32), _ONE)  # in the micro-batch of a rank without samples


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole samples and their N output tokens, flat, sample after sample.

    padded: a row [S] for each of B samples, padding on the right. packed: B is 1, the samples follow each other without
    padding, and positions start at 0 with each of them, which keeps attention inside a sample.
    """

    input_ids: Tensor  # int64 [B, S]
    position_ids: Tensor  # int64 [B, S]
    source_N: Tensor  # int64 [N]: the row of hidden.view(B * S, H) that predicts the token
    targets_N: Tensor  # int64 [N]: the output tokens
    sample_N: Tensor  # int64 [N]: the sample of this batch each token belongs to
    recorded_N: Tensor  # float32 [N]: log-probs recorded at generation
    versions_N: Tensor  # int64 [N]: the version that generated the token
    learner_N: Tensor | None  # float32 [N]: log-probs of the learner under that version; None: not recorded for all


def microbatches(lengths: Sequence[int], budget: int, layout: Layout = "padded") -> list[list[int]]:
    """Split samples into micro-batches of at most `budget` tokens, padding included.

    Samples are taken longest first, so that the micro-batch that needs the most memory is the first. Padded: neighbours
    in length share a micro-batch, in the way that minimises all tokens, padding included, plus `OVERHEAD` tokens for
    each micro-batch; the overhead is lowered until padding is less than `MAX_PADDING` of all tokens. Packed: each
    sample goes to the first micro-batch that it fits into. A sample longer than the budget is alone.

    Args:
        lengths: prompt + output tokens of each sample.
        budget: tokens of one micro-batch; padded: samples x longest length, packed: the sum of lengths.

    Returns:
        lists of indices into `lengths`, every index exactly once; a function of the arguments only.
    """
    if budget < 1:
        raise ValueError(f"the token budget must be at least 1, found {budget}")
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return (_packed if layout == "packed" else _padded)(lengths, order, budget)


def share_of_microbatches(
    lengths: Sequence[int], budget: int, layout: Layout, *, shares: int, index: int
) -> list[list[int]]:
    """Return the micro-batches of one of `shares` ranks that train together, with the arguments of `microbatches`.

    All ranks get the same number of micro-batches, because they wait for each other in every layer; an empty one fills
    a place without samples. Micro-batches that are computed at the same time have similar sizes, and the budget is
    lowered where otherwise some ranks would have nothing to do. With one share this is `microbatches`.
    """
    if shares == 1 or not lengths:
        return microbatches(lengths, budget, layout)
    batches = microbatches(lengths, min(budget, max(*lengths, -(-sum(lengths) // shares))), layout)
    batches.sort(key=lambda batch: (-sum(lengths[i] for i in batch), batch[0]))
    batches += [[] for _ in range(-len(batches) % shares)]
    return batches[index::shares]


def _padded(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    overhead = OVERHEAD
    while True:  # ends: below 1, avoiding one padding token is worth another micro-batch
        batches = _cheapest(lengths, order, budget, overhead)
        if padding_share(lengths, batches) < MAX_PADDING:
            return batches
        overhead /= 2


def _cheapest(lengths: Sequence[int], order: Sequence[int], budget: int, overhead: float) -> list[list[int]]:
    """The parts of `order` whose sum of samples x longest length + `overhead` is the smallest."""
    n = len(order)
    cost = np.full(n + 1, np.inf)  # of the first samples
    start = np.zeros(n + 1, dtype=np.int64)  # of their last part
    cost[0] = 0
    for first, index in enumerate(order):
        longest = lengths[index]
        ends = slice(first + 1, first + 1 + max(1, min(n - first, budget // longest)))
        costs = cost[first] + overhead + longest * np.arange(1, ends.stop - first)
        better = costs < cost[ends]
        cost[ends][better], start[ends][better] = costs[better], first
    batches: list[list[int]] = []
    while n:
        batches.insert(0, list(order[start[n] : n]))
        n = int(start[n])
    return batches


def _packed(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    left: list[int] = []  # tokens of the budget left in each
    for index in order:
        found = next((b for b, tokens in enumerate(left) if lengths[index] <= tokens), len(batches))
        if found == len(batches):
            batches.append([])
            left.append(budget)
        batches[found].append(index)
        left[found] -= lengths[index]
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Return padding as a share of all tokens of the padded micro-batches, 0 to 1."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded if padded else 0.0


def collate(rows: Sequence[Row], pad_id: int, device: torch.device | str, layout: Layout = "padded") -> Batch:
    """Return samples as one batch, with the place where each output token is predicted.

    Output token t of a sample is at position p = len(prompt) + t, and the hidden state at p - 1 predicts it.
    """
    lengths = [len(row) for row in rows]
    if layout == "packed":
        shape = (1, sum(lengths))
        starts = np.cumsum([0, *lengths[:-1]])
        positions = np.concatenate([np.arange(length) for length in lengths])
    else:
        shape = (len(rows), max(lengths))
        starts = np.arange(len(rows)) * max(lengths)
        positions = np.tile(np.arange(max(lengths)), len(rows))
    input_ids = np.full(shape[0] * shape[1], pad_id, dtype=np.int64)
    for start, row in zip(starts, rows, strict=True):
        input_ids[start : start + len(row)] = np.concatenate([row.prompt, row.tokens])
    sources = [start + np.arange(len(row.prompt), len(row)) - 1 for start, row in zip(starts, rows, strict=True)]

    learner = [row.learner_logprobs for row in rows if row.learner_logprobs is not None]

    def tensor(array: NDArray[np.generic], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    return Batch(
        input_ids=tensor(input_ids).view(shape),
        position_ids=tensor(positions).view(shape),
        source_N=tensor(np.concatenate(sources)),
        targets_N=tensor(np.concatenate([row.tokens for row in rows])),
        sample_N=tensor(np.repeat(np.arange(len(rows)), [len(row.tokens) for row in rows])),
        recorded_N=tensor(np.concatenate([row.logprobs for row in rows]), torch.float32),
        versions_N=tensor(np.concatenate([row.versions for row in rows])),
        learner_N=tensor(np.concatenate(learner), torch.float32) if len(learner) == len(rows) else None,
    )
