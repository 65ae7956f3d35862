"""The metrics of one gradient update, by UloRL's names, from sums over its tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SUMS = ("tokens", "kept", "entropy", "mpts", "mpt_entropy", "masked", "ratio", "clipped", "weights")


def stacked(sums: Mapping[str, Tensor]) -> Tensor:
    """Return the sums of a micro-batch in the order of `SUMS`, float64, so that micro-batches and processes add up."""
    return torch.stack([sums[name].detach().double() for name in SUMS])


def update_means(sums: Tensor, *, weighted: bool) -> dict[str, float]:
    """Return the means over an update's tokens; absent where there are none.

    sums: in the order of `SUMS`. weighted: whether tokens have weights of truncated importance sampling.
    """
    of = dict(zip(SUMS, sums.tolist(), strict=True))
    if not of["tokens"]:
        return {}
    means = {
        "entropy/mean": of["entropy"] / of["tokens"],
        "mpt/fraction": of["mpts"] / of["tokens"],
        "mpt/masked_fraction": of["masked"] / of["tokens"],
        "train/tokens": of["tokens"],
    }
    if of["entropy"]:
        means["mpt/entropy_share"] = of["mpt_entropy"] / of["entropy"]
    if of["kept"]:
        means["importance/ratio_mean"] = of["ratio"] / of["kept"]
        means["importance/clip_fraction"] = of["clipped"] / of["kept"]
        if weighted:
            means["importance/tis_mean"] = of["weights"] / of["kept"]
    return means
