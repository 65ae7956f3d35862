"""A batch of mixed-version samples, from rewards to loss, worked out by hand.

Group X, rewards 1 0 0 0: mean 1/4, squared deviations 9/16 + 3 * 1/16 = 3/4, variance 3/4 / 3, std 1/2,
                          advantages 1.5 -0.5 -0.5 -0.5
Group Y, rewards 1 1 1 0: mean 3/4, std 1/2 likewise, advantages 0.5 0.5 0.5 -1.5
Group Z, all right: not informative, left out before the batch is made.

sample  reward  A     versions  p recorded      p at start      p now           entropy         H_i
0       1       1.5   0 0 1     .5  .8  .796    .75 .8  .995    .75 .84 .995    .30 .10 .02     .14
1       0      -0.5   1 1       .4  .9          .3  .99         .2  .99         .50 .01
2       0      -0.5   0 1       .4  .5          .5  .4          .6  .5          .30 .30
3       0      -0.5   2         .3              .3              .3              .60
4       1       0.5   2         .995            .995            .995            .40             .40
5       1       0.5   2         .99             .99             .99             .10             .10
6       1       0.5   1 2       .5  .6          .5  .6          .5  .6          .70 .50         .60
7       0      -1.5   0         .5              .45             .45             .20
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ulorl.learner.batching import Batch, Row, collate
from ulorl.objective.advantage import group_advantages, is_informative
from ulorl.objective.importance import Importance, old_logprobs, ratios
from ulorl.objective.mpt import masked_tokens
from ulorl.objective.policy_loss import clipped_objective_sum
from ulorl.types import Finish, Sample, Segment, Status

REWARDS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
VERSIONS = [[0, 0, 1], [1, 1], [0, 1], [2], [2], [2], [1, 2], [0]]
RECORDED = [[0.5, 0.8, 0.796], [0.4, 0.9], [0.4, 0.5], [0.3], [0.995], [0.99], [0.5, 0.6], [0.5]]
START = [0.75, 0.8, 0.995, 0.3, 0.99, 0.5, 0.4, 0.3, 0.995, 0.99, 0.5, 0.6, 0.45]
NOW = [0.75, 0.84, 0.995, 0.2, 0.99, 0.6, 0.5, 0.3, 0.995, 0.99, 0.5, 0.6, 0.45]
ENTROPY = [0.3, 0.1, 0.02, 0.5, 0.01, 0.3, 0.3, 0.6, 0.4, 0.1, 0.7, 0.5, 0.2]

# DMMPTs, tau .99, sigma .2. Right samples' tokens with p >= .99: sample 0's last (H .14 < .2: masked), sample 4's
# (H .40: trained), sample 5's (p exactly tau, H .10: masked). Sample 1's .99 is not positive.
MASKED = [0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]

# now / recorded; sample 0's first is clipped to 1.2 (A > 0), sample 1's first to .8 (A < 0), sample 2's first is
# above 1.2 but A < 0, so min() takes the unclipped branch.
SAIS_RATIOS = [1.5, 1.05, 1.25, 0.5, 1.1, 1.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9]
SAIS_TERMS = [1.8, 1.575, 0.0, -0.4, -0.55, -0.75, -0.5, -0.5, 0.5, 0.0, 0.5, 0.5, -1.35]  # sum .825
SAIS_CLIPPED = [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
# now / start, the second mini-batch of a step
POIS_RATIOS = [1.0, 1.05, 1.0, 2 / 3, 1.0, 1.2, 1.25, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
POIS_TERMS = [1.5, 1.575, 0.0, -0.4, -0.5, -0.6, -0.625, -0.5, 0.5, 0.0, 0.5, 0.5, -1.5]  # sum .45
POIS_CLIPPED = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
# one update a step: every ratio is 1
ONES_TERMS = [1.5, 1.5, 0.0, -0.5, -0.5, -0.5, -0.5, -0.5, 0.5, 0.0, 0.5, 0.5, -1.5]  # sum .5


def sample(index: int) -> Sample:
    """The sample's segments, cut where its version changes."""
    versions, logprobs = np.array(VERSIONS[index]), np.log(RECORDED[index])
    segments = tuple(
        Segment(
            sample_id=index,
            tokens=np.full(int((versions == v).sum()), 10 + index, dtype=np.int32),
            logprobs=logprobs[versions == v].astype(np.float32),
            versions=versions[versions == v].astype(np.int32),
            finish=Finish.EOS if v == versions[-1] else Finish.LENGTH,
        )
        for v in np.unique(versions)
    )
    return Sample(index, index // 4, np.array([1, 2], dtype=np.int32), segments, Status.COMPLETE)


@pytest.fixture
def batch() -> Batch:
    samples = [sample(i) for i in range(8)]
    assert [list(s.versions) for s in samples] == VERSIONS
    return collate([Row(s.prompt, s.tokens, s.logprobs, s.versions) for s in samples], pad_id=0, device="cpu")


def logs(probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float32).log()


def test_advantages() -> None:
    x, y = (group_advantages(torch.tensor(rewards)) for rewards in REWARDS)
    assert x.tolist() == [1.5, -0.5, -0.5, -0.5]
    assert y.tolist() == [0.5, 0.5, 0.5, -1.5]
    assert is_informative(torch.tensor(REWARDS[0]))
    assert not is_informative(torch.ones(4))


def test_mask(batch: Batch) -> None:
    correct_B = torch.tensor(REWARDS).flatten() == 1

    def masked(**settings: object) -> list[int]:
        return masked_tokens(
            logs(NOW), torch.tensor(ENTROPY), batch.sample_N, correct_B, **{"tau": 0.99, "sigma": 0.2, **settings}
        ).tolist()

    assert masked(mask="dynamic") == MASKED
    every_mpt = [0, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    assert masked(mask="all") == every_mpt
    assert not any(masked(mask="off"))
    batch_entropy = 4.03 / 13  # 0.31
    assert not any(masked(mask="dynamic", batch_entropy=batch_entropy))
    assert masked(mask="dynamic", batch_entropy=batch_entropy, sigma=0.35) == every_mpt


@pytest.mark.parametrize(
    ("kind", "start", "expected_ratios", "terms", "clipped", "total"),
    [
        ("sais", None, SAIS_RATIOS, SAIS_TERMS, SAIS_CLIPPED, 0.825),
        ("sais", START, SAIS_RATIOS, SAIS_TERMS, SAIS_CLIPPED, 0.825),  # SAIS does not look at the update's start
        ("pois", START, POIS_RATIOS, POIS_TERMS, POIS_CLIPPED, 0.45),
        ("pois", None, [1.0] * 13, ONES_TERMS, [0] * 13, 0.5),
    ],
)
def test_loss_and_gradient(
    batch: Batch,
    kind: Importance,
    start: list[float] | None,
    expected_ratios: list[float],
    terms: list[float],
    clipped: list[int],
    total: float,
) -> None:
    logprobs_N = logs(NOW).requires_grad_()
    old_N = old_logprobs(kind, batch.recorded_N, None if start is None else logs(start), logprobs_N)
    torch.testing.assert_close(ratios(logprobs_N, old_N), torch.tensor(expected_ratios))

    advantages_B = torch.cat([group_advantages(torch.tensor(rewards)) for rewards in REWARDS])
    kept_N = ~torch.tensor(MASKED, dtype=torch.bool)
    loss, sums = clipped_objective_sum(
        logprobs_N, old_N, advantages_B[batch.sample_N], kept_N, clip_low=0.2, clip_high=0.2
    )
    tokens = len(batch.targets_N)
    assert tokens == 13  # the denominator counts the two masked tokens
    (loss / tokens).backward()

    assert math.isclose(sum(terms), total)
    assert loss.item() / tokens == pytest.approx(-total / 13, rel=1e-6)
    # d(-r A)/d log p = -r A = minus the term; nothing where masked or clipped
    gradient = torch.tensor([0.0 if c else -term / 13 for term, c in zip(terms, clipped, strict=True)])
    torch.testing.assert_close(logprobs_N.grad, gradient, atol=1e-7, rtol=1e-6)
    assert sums.tokens.item() == 11
    assert sums.clipped.item() == sum(clipped)
    kept_ratios = sum(r for r, m in zip(expected_ratios, MASKED, strict=True) if not m)
    assert sums.ratio.item() == pytest.approx(kept_ratios, rel=1e-6)
