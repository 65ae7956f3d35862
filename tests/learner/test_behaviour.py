"""The learner's log-probs of new tokens, recorded before the weights that drew them change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tiny_learner import GROUPS, V, learner, sample
from ulorl.learner.behaviour import record_behaviour
from ulorl.learner.policy_learner import PolicyLearner
from ulorl.types import Finish, Group, Sample, Scored, Segment, Status


def dense(of: PolicyLearner, carried: Sample) -> torch.Tensor:
    ids = torch.tensor(np.concatenate([carried.prompt, carried.tokens])[None].astype(np.int64))
    with torch.no_grad():
        logprobs = (of.model(ids).logits[0] / 0.85).log_softmax(-1)
    return logprobs[len(carried.prompt) - 1 : -1].gather(1, ids[0, len(carried.prompt) :, None])[:, 0]


def next_segment(carried: Sample, version: int) -> Sample:
    tokens = np.random.default_rng(version).integers(1, V, 3).astype(np.int32)
    segment = Segment(carried.id, tokens, np.full(3, -1.0, np.float32), np.full(3, version, np.int32), Finish.EOS)
    return Sample(carried.id, carried.group_id, carried.prompt, (*carried.segments, segment), Status.COMPLETE)


def test_each_segment_keeps_the_log_probs_of_its_version() -> None:
    """Two tokens of version 0 and, after an update, three of version 1."""
    of = learner()
    first, *others = record_behaviour(of, [sample(3, [2]), sample(1, [4]), sample(9, [1])])
    assert [len(s.learner_logprobs) for s in others if s.learner_logprobs is not None] == [4, 1]
    at_first = dense(of, first)
    torch.testing.assert_close(torch.tensor(first.learner_logprobs), at_first, rtol=1e-5, atol=1e-6)
    of.update(GROUPS)
    (whole,) = record_behaviour(of, [next_segment(first, 1)])
    found = torch.tensor(whole.learner_logprobs)
    torch.testing.assert_close(found[2:], dense(of, whole)[2:], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[:2], torch.tensor(first.learner_logprobs))
    assert (dense(of, whole)[:2] - at_first).abs().max() > 1e-3  # the weights have changed
    assert record_behaviour(of, []) == []


def test_tokens_of_another_version_are_no_tokens_of_the_learner() -> None:
    with pytest.raises(RuntimeError, match="another version than the learner's 0"):
        record_behaviour(learner(), [sample(1, [2, 3])])


def test_a_sample_without_recorded_segments_has_none() -> None:
    (first,) = record_behaviour(learner(), [sample(3, [2])])
    assert sample(3, [2]).learner_logprobs is None
    assert next_segment(first, 1).learner_logprobs is None  # of the last segment they are missing
    with pytest.raises(ValueError, match="2 tokens, but 3 log-probs of the learner"):
        first.with_learner_logprobs(np.zeros(3, np.float32))


def test_without_recorded_log_probs_the_update_is_refused() -> None:
    with pytest.raises(ValueError, match="decoupled needs the learner's log-probs"):
        learner(objective={"importance": "decoupled"}).update(GROUPS)


def shifted(group: Group, engine: float, stale: float) -> Group:
    """The group as the learner of version 0 drew it, but the engine's log-probs are `engine` higher than the
    learner's, and the learner's of then `stale` higher than its present ones."""
    of = learner(objective={"dynamic_sampling": False})

    def member(scored: Scored) -> Scored:
        now = dense(of, scored.sample).numpy()
        (segment, *_) = scored.sample.segments
        n = len(segment)
        whole: dict[str, Any] = {"logprobs": now[:n] + stale + engine, "learner_logprobs": now[:n] + stale}
        made = Segment(segment.sample_id, segment.tokens, whole["logprobs"], segment.versions, segment.finish)
        one = Sample(scored.sample.id, scored.sample.group_id, scored.sample.prompt, (made,), Status.COMPLETE)
        return replace(scored, sample=one.with_learner_logprobs(whole["learner_logprobs"]))

    return Group(group.id, group.problem, tuple(map(member, group.members)))


def test_staleness_and_mismatch_are_apart() -> None:
    """All ratios are e^-.1 (staleness), all weights e^-.5 (mismatch); SAIS has their product as its ratio, and clips
    it."""
    group = shifted(GROUPS[0], engine=0.5, stale=0.1)
    objective = {"mpt": {"mask": "off"}, "importance": "decoupled", "tis_cap": 2.0}
    means = learner(objective=objective).update([group]).means
    assert means["importance/ratio_mean"] == pytest.approx(np.exp(-0.1), rel=1e-4)
    assert means["importance/tis_mean"] == pytest.approx(np.exp(-0.5), rel=1e-4)
    assert means["importance/clip_fraction"] == 0.0
    sais = learner(objective={"mpt": {"mask": "off"}, "importance": "sais"}).update([group]).means
    assert sais["importance/ratio_mean"] == pytest.approx(np.exp(-0.6), rel=1e-4)
    assert sais["importance/clip_fraction"] > 0.4
