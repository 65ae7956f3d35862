"""Samples to micro-batches by token budget. The only place that shifts tokens: the hidden state at position p - 1
predicts the token at position p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulorl.types import LogProbs, Tokens, Versions


@dataclass(frozen=True, eq=False)
class Row:
    """One finished sample as the learner sees it."""

    prompt: Tokens  # at least one token
    tokens: Tokens  # output, at least one token
    logprobs: LogProbs  # of each output token, as recorded at generation
    versions: Versions  # that generated each output token

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


@dataclass(frozen=True, eq=False)
class Batch:
    """B whole samples, right padded to S tokens, and their N output tokens, flat, sample after sample."""

    input_ids: Tensor  # int64 [B, S]
    attention_mask: Tensor  # int64 [B, S]: 1 token, 0 padding
    position_ids: Tensor  # int64 [B, S]
    source_N: Tensor  # int64 [N]: the row of hidden.view(B * S, H) that predicts the token
    targets_N: Tensor  # int64 [N]: the output tokens
    sample_N: Tensor  # int64 [N]: the sample of this batch each token belongs to
    recorded_N: Tensor  # float32 [N]: log-probs recorded at generation
    versions_N: Tensor  # int64 [N]: the version that generated the token

    def __len__(self) -> int:
        """Samples."""
        return len(self.input_ids)


def microbatches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split samples into micro-batches of at most `budget` tokens, padding included.

    Samples are sorted by length, so that neighbours pad each other little, and taken longest first, so that what needs
    the most memory comes first. A sample longer than the budget is alone in its micro-batch.

    Args:
        lengths: prompt + output tokens of each sample.
        budget: samples x longest length of one micro-batch.

    Returns:
        lists of indices into `lengths`, every index exactly once; a function of the arguments only.
    """
    if budget < 1:
        raise ValueError(f"the token budget must be at least 1, found {budget}")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Padding as a share of all tokens of the padded micro-batches, 0 to 1."""
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / padded if padded else 0.0


def collate(rows: Sequence[Row], pad_id: int, device: torch.device | str) -> Batch:
    """Pad samples on the right and say where each output token is predicted.

    Output token t of row b stands at position p = len(prompt) + t, and the hidden state at p - 1 predicts it.
    """
    lengths = [len(row) for row in rows]
    width = max(lengths)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for b, row in enumerate(rows):
        input_ids[b, : len(row.prompt)] = row.prompt
        input_ids[b, len(row.prompt) : len(row)] = row.tokens
    positions = np.arange(width)
    sources = [b * width + np.arange(len(row.prompt), len(row)) - 1 for b, row in enumerate(rows)]

    def tensor(array: NDArray[np.generic], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(array, dtype=dtype, device=device)

    return Batch(
        input_ids=tensor(input_ids),
        attention_mask=tensor(positions < np.array(lengths)[:, None]),
        position_ids=tensor(positions).expand(len(rows), width),
        source_N=tensor(np.concatenate(sources)),
        targets_N=tensor(np.concatenate([row.tokens for row in rows])),
        sample_N=tensor(np.repeat(np.arange(len(rows)), [len(row.tokens) for row in rows])),
        recorded_N=tensor(np.concatenate([row.logprobs for row in rows]), torch.float32),
        versions_N=tensor(np.concatenate([row.versions for row in rows])),
    )
