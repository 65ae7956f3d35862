"""The soft overlong punishment against hand arithmetic."""

from __future__ import annotations

import pytest

from ulorl.objective.overlong import soft_overlong_penalty


def test_soft_overlong_penalty_by_hand() -> None:
    # L = 100, buffer 20: 0 up to 80; (80 - 85) / 20 = -.25; (80 - 90) / 20 = -.5; -1 at 100 and beyond
    lengths = [0, 79, 80, 85, 90, 100, 101]
    assert [soft_overlong_penalty(n, 100, 20) for n in lengths] == [0, 0, 0, -0.25, -0.5, -1, -1]
    assert soft_overlong_penalty(50, 100, 100) == -0.5
    for buffer in (0, -1, 101):
        with pytest.raises(ValueError, match="overlong buffer"):
            soft_overlong_penalty(50, 100, buffer)
