"""Group advantages (eq. 4) and dynamic sampling. Shapes: G samples of one problem."""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards_G: Tensor) -> Tensor:
    """Return GRPO's advantages (eq. 4): (r - mean) / std over the G samples of one problem.

    The standard deviation has Bessel's correction (divides by G - 1), as in TRL and verl; unlike there no epsilon is
    added to it. A group whose rewards are all equal gets zeros.

    Args:
        rewards_G: rewards [G], G >= 2.

    Returns:
        advantages [G], in the rewards' dtype.

    Raises:
        ValueError: fewer than 2 rewards, or another shape.
    """
    if rewards_G.ndim != 1 or len(rewards_G) < 2:
        raise ValueError(f"a group needs the rewards of at least 2 samples, found shape {tuple(rewards_G.shape)}")
    if bool((rewards_G == rewards_G[0]).all()):  # not `std == 0`: the mean of equal floats may be rounded
        return torch.zeros_like(rewards_G)
    exact_G = rewards_G.double()
    return ((exact_G - exact_G.mean()) / exact_G.std(correction=1)).to(rewards_G.dtype)


def is_informative(rewards_G: Tensor) -> bool:
    """Return whether a group is neither all right nor all wrong (dynamic sampling, DAPO), from its {0, 1} rewards [G]
    before any overlong punishment."""
    return bool((rewards_G != rewards_G[0]).any())
