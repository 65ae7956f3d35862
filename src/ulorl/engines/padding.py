"""What the embedded engine computes beyond the tokens of its rows: padding in prefill passes, and the entries that
attention reads for a row because a longer one is in its block. The rollout planner computes by the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CPU_PADDING, GPU_PADDING = 128, 4096  # tokens that take about as long as one more prefill pass
SORT_EVERY = 32  # decode steps between checks of the order of the rows
SORT_ABOVE = 1.1  # entries read, over those that sorted rows would read


def padded_passes(lengths: Sequence[int], tokens: float, padding: int) -> Iterator[slice]:
    """Yield which sequences each forward pass computes. lengths: of all of them, in tokens, longest first.

    A pass pads its sequences to the longest one. With that it has at most `tokens` tokens, and `padding` of them are
    padding at most; a longer sequence is alone.
    """
    start = real = 0
    for end, length in enumerate(lengths):
        padded = (end - start + 1) * lengths[start]
        if end > start and (padded > tokens or padded - real - length > padding):
            yield slice(start, end)
            start, real = end, 0
        real += length
    if lengths:
        yield slice(start, len(lengths))
