"""The values of single tokens that an update returns of a few samples."""

from __future__ import annotations

import numpy as np
import pytest

from tiny_learner import GROUPS, learner
from ulorl.config.training_config import ObjectiveConfig
from ulorl.learner.experience import prepare
from ulorl.learner.observed import observed_samples

MASK = {"mpt": {"mask": "dynamic", "tau": 0.02, "sigma": 10.0}}  # masks every MPT, of which tau makes many


@pytest.mark.parametrize("minibatches", [1, 2])
def test_the_values_of_all_samples_give_the_means_of_the_update(minibatches: int) -> None:
    of = learner({"minibatches": minibatches, "microbatch_tokens": 16}, MASK, token_samples=100)
    update = of.update(GROUPS)
    lengths = {one.sample.id: len(one.sample) for group in GROUPS for one in group.members}
    assert {id: len(values.entropy) for id, values in update.token_values.items()} == lengths
    entropy = np.concatenate([values.entropy for values in update.token_values.values()])
    masked = np.concatenate([values.masked for values in update.token_values.values()])
    assert entropy.mean() == pytest.approx(update.means["entropy/mean"], rel=1e-5)
    assert masked.mean() == pytest.approx(update.means["mpt/masked_fraction"])
    assert masked.any()
    right = {one.sample.id for group in GROUPS for one in group.members if one.reward}
    assert {id for id, values in update.token_values.items() if values.masked.any()} <= right


def test_each_sample_has_its_own_values() -> None:
    """The same sample has the same values, whatever the micro-batch that it was in."""
    together = learner({"microbatch_tokens": 4096}, MASK, token_samples=100).update(GROUPS).token_values
    apart = learner({"microbatch_tokens": 1}, MASK, token_samples=100).update(GROUPS).token_values
    for id, values in together.items():
        assert values.entropy == pytest.approx(apart[id].entropy, rel=1e-4)
        assert values.masked.tolist() == apart[id].masked.tolist()


def test_right_and_wrong_samples_of_most_versions_are_observed() -> None:
    """Right: 0, 3 (3 versions) and 7. Wrong: 1, 6 (2 versions), 2, 4 and 5."""
    experience, _ = prepare(GROUPS, ObjectiveConfig(), 16)
    assert observed_samples(experience, 0) == frozenset()
    assert observed_samples(experience, 3) == {3, 1, 0}
    assert observed_samples(experience, 4) == {3, 1, 0, 6}
    assert learner().update(GROUPS).token_values == {}


def test_advantages_are_returned_by_sample() -> None:
    """Rewards 1, 0, 0, 1: mean 0.5, std sqrt(4 x 0.25 / 3) = 0.577, so 0.5 / 0.577 = 0.866. Rewards 0, 0, 0, 1: mean
    0.25, std sqrt((3 x 0.0625 + 0.5625) / 3) = 0.5, so -0.5 and 1.5."""
    advantages = learner().update(GROUPS).advantages
    expected = [0.866, -0.866, -0.866, 0.866, -0.5, -0.5, -0.5, 1.5]
    assert [advantages[id] for id in range(8)] == pytest.approx(expected, abs=1e-3)
