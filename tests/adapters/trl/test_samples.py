"""Which samples are correct, and which are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")


from trl_loops import SOURCE, build, even, train
from ulorl.adapters.trl import UloRLTrainer
from ulorl.adapters.trl.trainer import informative, trained_tokens


def long(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) < 12 else 0.5 for ids in completion_ids]


@pytest.fixture(scope="module")
def trainer() -> UloRLTrainer:
    return build(UloRLTrainer, reward_funcs=[even, long], reward_weights=[1.0, 2.0], beta=0.0)


NAN = float("nan")
GROUPS = [  # of 3 samples, two functions
    [[1, 0], [1, 0], [1, 0]],
    [[1, 0], [1, 0], [0, 0]],  # the first function differs
    [[1, 0], [1, 1], [1, 0]],  # the second
    [[1, 0], [0, 1], [1, 0]],  # both, with the same sum
    [[1, 0], [1, 0], [NAN, NAN]],  # one is unscored
    [[1, 0], [0, 0], [NAN, NAN]],
    [[NAN, NAN], [NAN, NAN], [NAN, NAN]],
    [[NAN, 0], [1, 0], [1, NAN]],  # unscored by one function
]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([1, 1], [False, True, True, False, False, False, False, True]),
        ([1, 0], [False, True, False, True, False, False, False, True]),
        ([0, 1], [False, False, True, True, False, False, False, False]),
        ([0.1, 0.2], [False, True, True, True, False, False, False, True]),
    ],
)
def test_a_group_is_informative_where_weighted_sums_differ(weights: list[float], expected: list[bool]) -> None:
    rewards_BF, weights_F = torch.tensor(GROUPS).flatten(0, 1), torch.tensor(weights)
    assert informative(rewards_BF, weights_F, 3, normalized=False).tolist() == [e for e in expected for _ in range(3)]


def test_a_group_is_informative_where_normalized_sums_differ() -> None:
    """The last group's first function scored two samples with the same value, so that all normalized rewards are 0."""
    rewards_BF = torch.tensor(GROUPS).flatten(0, 1)
    found = informative(rewards_BF, torch.ones(2), 3, normalized=True).view(-1, 3).all(1)
    assert found.tolist() == [False, True, True, False, False, False, False, False]


def test_groups_whose_rewards_differ_by_rounding_are_not_informative() -> None:
    rewards_BF = torch.tensor([[0.1, 0.6], [0.7, 0.0], [32.1, 200.2], [232.3, 0.0]])
    assert len(rewards_BF.sum(1).unique()) == 4
    assert not informative(rewards_BF, torch.ones(2), 2, normalized=False).any()


def distinct(completions: Sequence[str], **_: Any) -> list[float]:
    return [float(i) for i in range(len(completions))]


def test_trained_tokens_leave_out_padding_tools_and_whole_samples() -> None:
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1]]),
        "trained": torch.tensor([True, False, True]),
    }
    assert trained_tokens(inputs).tolist() == [[True, False, False], [False] * 3, [True, False, False]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # weighted sums: 1 + 2 x 0.5, 0 + 2 x 0.5, 1, 0, none, 0.99999994
        ({}, [True, True, True, False, False, True]),
        ({"mpt_correct_reward": 2.0}, [True, False, False, False, False, False]),
        ({"mpt_correct_function": "even"}, [True, False, True, False, False, True]),
        ({"mpt_correct_function": "long", "mpt_correct_reward": 0.5}, [True, True, False, False, False, False]),
        ({"mpt_correct_reward": -1.0}, [True, True, True, True, False, True]),
    ],
)
def test_a_sample_is_correct_by_its_reward(
    trainer: UloRLTrainer, settings: dict[str, Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards_BF = torch.tensor([[1, 0.5], [0, 0.5], [1, NAN], [0, NAN], [NAN, NAN], [0.99999994, NAN]])
    for name, value in {"mpt_correct_function": None, "mpt_correct_reward": 1.0, **settings}.items():
        monkeypatch.setattr(trainer.args, name, value)
    assert trainer._rewarded(rewards_BF).tolist() == expected


@pytest.mark.parametrize("correct", ["reward", "advantage"])
def test_correct_and_trained_stay_with_their_samples(correct: str) -> None:
    """TRL shuffles the samples of a generation: with rewards of 0 and 1 both definitions are the same. A function whose
    weight is 0 changes nothing."""
    rewards = {"reward_funcs": [even, distinct], "reward_weights": [1.0, 0.0]}
    updates, _, _ = train(UloRLTrainer, mpt_correct=correct, max_steps=1, **rewards)
    for batch in updates[0].batches:
        texts = [
            SOURCE.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        rewarded = [reward == 1 for reward in even(texts)]
        trained = batch["trained"].tolist()
        assert [c for c, t in zip(batch["correct"].tolist(), trained, strict=True) if t] == [
            r for r, t in zip(rewarded, trained, strict=True) if t
        ]
        assert trained == (batch["advantages"] != 0).tolist()
