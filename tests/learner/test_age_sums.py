"""The diagnostics of each age by hand arithmetic."""

from __future__ import annotations

import pytest
import torch

from ulorl.learner.age_names import AGES
from ulorl.learner.age_sums import AgeSums

# age      0   0   1   9    9
# kept     1   1   0   1    1
# ratio    1   3   0   .5   1.5    age 0: 4 / 2, 4 or more: 2 / 2; age 1 has no token in the loss
# clipped  0   1   0   0    0
# entropy  1   2   4   .5   .5
# apart    .1  .3  .2  1    2
AGE = torch.tensor([0, 0, 1, 9, 9])
KEPT = torch.tensor([True, True, False, True, True])
RATIO = torch.tensor([1.0, 3.0, 0.0, 0.5, 1.5])
CLIPPED = torch.tensor([False, True, False, False, False])
ENTROPY = torch.tensor([1.0, 2.0, 4.0, 0.5, 0.5])
APART = torch.tensor([0.1, 0.3, 0.2, 1.0, 2.0])
MEANS = {
    "age/0": 0.4, "age/1": 0.2, "age/2": 0.0, "age/3": 0.0, "age/4_or_more": 0.4,
    "age/0/ratio": 2.0, "age/4_or_more/ratio": 1.0, "age/0/clip_fraction": 0.5, "age/4_or_more/clip_fraction": 0.0,
    "age/0/entropy": 1.5, "age/1/entropy": 4.0, "age/4_or_more/entropy": 0.5,
    "age/0/mismatch": 0.2, "age/1/mismatch": 0.2, "age/4_or_more/mismatch": 1.5,
}  # fmt: skip


def sums(rows: slice, *, compared: bool = True) -> AgeSums:
    return AgeSums.of(
        AGE[rows], entropy=ENTROPY[rows], kept=KEPT[rows], ratio=RATIO[rows], clipped=CLIPPED[rows],
        apart=APART[rows] if compared else None,
    )  # fmt: skip


def test_means_by_hand() -> None:
    assert sums(slice(None)).means() == pytest.approx(MEANS, rel=1e-6)


def test_parts_add_up() -> None:
    assert (sums(slice(0, 2)) + sums(slice(2, 5)) + AgeSums()).means() == pytest.approx(MEANS, rel=1e-6)


def test_tokens_without_log_probs_of_the_start_have_no_mismatch() -> None:
    found = (sums(slice(0, 2)) + sums(slice(2, 5), compared=False)).means()
    assert {name for name in found if name.endswith("mismatch")} == {"age/0/mismatch"}
    assert sum(found[age] for age in AGES) == pytest.approx(1.0)
