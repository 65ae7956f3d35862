"""Prepares an update: finished groups as rows with advantages, cut into mini-batches. Shapes: G samples of one
problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ulorl.config.training_config import ObjectiveConfig
from ulorl.learner.batching import Row
from ulorl.objective.advantage import group_advantages, is_informative
from ulorl.objective.overlong import soft_overlong_penalty
from ulorl.rng import Stream, sample_seed
from ulorl.types import Group, Sample, Status


@dataclass(frozen=True)
class Experience:
    """One sample with its advantage."""

    row: Row
    sample_id: int
    advantage: float
    correct: bool  # reward 1: its tokens can be MPTs (eq. 9)


def prepare(groups: Sequence[Group], objective: ObjectiveConfig, max_tokens: int) -> tuple[list[Experience], int]:
    """Turn scored groups into rows with advantages (eq. 4); also return how many groups dynamic sampling left out.

    Rewards are {0, 1}; a truncated sample has 0 already. `overlong=filter` leaves truncated samples out of the loss
    (their 0 still counts in the group's mean, as in DAPO); `overlong=soft` adds DAPO's length punishment to the reward.
    max_tokens: the global maximum output length.
    """
    rows: list[Experience] = []
    dropped = 0
    for group in groups:
        rewards_G = torch.tensor([member.reward for member in group.members], dtype=torch.float64)
        if objective.dynamic_sampling and not is_informative(rewards_G):
            dropped += 1
            continue
        if objective.overlong == "soft":
            lengths = [len(member.sample) for member in group.members]
            penalties = [soft_overlong_penalty(n, max_tokens, objective.overlong_buffer) for n in lengths]
            rewards_G = rewards_G + torch.tensor(penalties, dtype=torch.float64)
        for member, advantage in zip(group.members, group_advantages(rewards_G).tolist(), strict=True):
            if objective.overlong == "filter" and member.sample.status is Status.TRUNCATED:
                continue
            sample = member.sample
            rows.append(Experience(row_of(sample), sample.id, advantage, correct=member.reward == 1.0))
    return rows, dropped


def row_of(sample: Sample) -> Row:
    """Return a sample with output tokens as a row of a batch."""
    return Row(sample.prompt, sample.tokens, sample.logprobs, sample.versions, sample.learner_logprobs)


def minibatches(sample_ids: Sequence[int], number: int, seed: int) -> list[NDArray[np.int64]]:
    """Cut samples into at most `number` mini-batches of equal size, and return their indices in rising order.

    Several mini-batches are cut from a shuffled order: samples come in the order of their groups, so that otherwise the
    older and longer ones would all be in the first. A sample's place in that order is drawn from (seed, sample id), so
    that a resumed run makes the same mini-batches.
    """
    number = min(number, len(sample_ids))
    keys = [sample_seed(seed, id, Stream.MINIBATCHES) for id in sample_ids] if number > 1 else [0] * len(sample_ids)
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return [np.sort(part) for part in np.array_split(order, number)]
