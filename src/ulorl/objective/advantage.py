"""Group advantages (eq. 4), dynamic sampling and DAPO's soft overlong punishment. Shapes: G samples of one problem."""

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


def soft_overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """Return DAPO's soft overlong punishment (DAPO eq. 13), which is added to the reward.

    Args:
        length: output tokens of the sample.
        max_tokens: the global maximum output length L.
        buffer: tokens before `max_tokens` over which the punishment grows, 1 to `max_tokens`.

    Returns:
        0 up to `max_tokens - buffer` tokens, then linear to -1 at `max_tokens`, and -1 beyond.

    Raises:
        ValueError: a buffer outside 1 to `max_tokens`.
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"the overlong buffer must be 1 to {max_tokens} (max_tokens), found {buffer}")
    return -min(max(length - (max_tokens - buffer), 0) / buffer, 1.0)
