"""The soft punishment of overlong outputs (section 3.5; DAPO)."""

from __future__ import annotations


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
