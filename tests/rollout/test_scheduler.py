"""Scheduler and pools under arbitrary outputs: every sample is in one place, nothing is lost, twice or early."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.scripted import ScriptedEngine
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.types import Finish, Problem, Sample, Sampling, Scored, Segment, Status

PROMPT = np.array([5], np.int32)
EOS = 0


@settings(deadline=None, max_examples=150)
@given(
    segments=st.integers(1, 5),
    segment_tokens=st.integers(1, 4),
    group=st.integers(2, 4),
    new=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    data=st.data(),
)
def test_every_sample_ends_once_and_whole(
    segments: int, segment_tokens: int, group: int, new: list[int], data: st.DataObject
) -> None:
    limit = segments * segment_tokens
    count = sum(new) * group
    lengths = data.draw(st.lists(st.integers(1, 2 * limit), min_size=count, max_size=count))
    engine = ScriptedEngine({i: [i + 1] * (n - 1) + [EOS] for i, n in enumerate(lengths)}, eos_id=EOS)
    schedule = SegmentSchedule(prompts=3, group=group, tokens=segment_tokens)
    scheduler = Scheduler(schedule, max_tokens=limit, sampling=Sampling(), seed=0)
    released: list[Scored] = []
    for step in range(len(new) + segments):
        problems = new[step] if step < len(new) else 0
        scheduler.begin_step([(Problem(f"{step}.{i}", "?"), PROMPT) for i in range(problems)])
        asked = len(engine.requests)
        for segment in scheduled_rollout(engine, scheduler.next_requests):
            sample = scheduler.end_segment(segment)
            if sample.status is not Status.UNFINISHED:
                scheduler.experience.add(Scored(sample, 1.0, ""))
        requests = engine.requests[asked:]
        assert all(0 < r.max_new_tokens <= min(segment_tokens, limit - r.output_length) for r in requests)
        groups = scheduler.release()
        assert [g.id for g in groups] == sorted(g.id for g in groups)
        for g in groups:
            assert [m.sample.id for m in g.members] == [g.id * group + i for i in range(group)]
            released += g.members
        held = [*(s.id for s in scheduler.unfinished)]
        for g in scheduler.experience.open_groups.values():
            held += g.members
        everywhere = held + [m.sample.id for m in released]
        assert sorted(everywhere) == list(range(sum(new[: step + 1]) * group))  # each in exactly one place
        engine.load_weights((), version=step + 1)

    assert len(released) == count  # after k more steps nothing is left
    for scored in released:
        sample, wanted = scored.sample, lengths[scored.sample.id]
        assert len(sample) == min(wanted, limit)
        assert sample.status is (Status.COMPLETE if wanted <= limit else Status.TRUNCATED)
        assert len(sample.segments) == -(-len(sample) // segment_tokens)
        assert sample.tokens.tolist() == ([sample.id + 1] * (wanted - 1) + [EOS])[:limit]
        assert (np.diff(sample.versions) >= 0).all()
        assert len(set(sample.versions.tolist())) == len(sample.segments)  # one version a segment, rising


def test_a_restored_pool_without_waiting_samples_keeps_its_open_groups() -> None:
    """A pool's length counts samples, so one that holds only open groups is falsy; the scheduler takes it."""
    experience = ExperiencePool(2)
    experience.open(0, Problem("0", "?"))
    scheduler = Scheduler(
        SegmentSchedule(prompts=1, group=2, tokens=2), max_tokens=4, sampling=Sampling(), seed=0,
        unfinished=UnfinishedPool([_sample(0, Status.UNFINISHED)]), experience=experience, next_group=1,
    )  # fmt: skip
    assert scheduler.experience.problem(0).id == "0"
    scheduler.begin_step([])
    assert [r.sample_id for r in scheduler.next_requests() or ()] == [0]


def _sample(id: int, status: Status) -> Sample:
    return Sample(id, id // 2, PROMPT, (), status)


def test_pools_refuse_what_does_not_belong() -> None:
    unfinished = UnfinishedPool([_sample(3, Status.UNFINISHED), _sample(1, Status.UNFINISHED)])
    with pytest.raises(ValueError, match="already"):
        unfinished.put(_sample(3, Status.UNFINISHED))
    with pytest.raises(ValueError, match="takes unfinished"):
        unfinished.put(_sample(4, Status.COMPLETE))
    assert [s.id for s in unfinished] == [1, 3]

    experience = ExperiencePool(2)
    experience.open(0, Problem("0", "?"))
    with pytest.raises(ValueError, match="open already"):
        experience.open(0, Problem("0", "?"))
    experience.add(Scored(_sample(1, Status.COMPLETE), 1.0, ""))
    with pytest.raises(ValueError, match="already"):
        experience.add(Scored(_sample(1, Status.COMPLETE), 1.0, ""))
    with pytest.raises(ValueError, match="takes finished"):
        experience.add(Scored(_sample(0, Status.UNFINISHED), 1.0, ""))
    assert experience.finished_groups == {}
    with pytest.raises(ValueError, match="group 0 has 1 of 2 finished samples"):
        experience.release([0])
    experience.add(Scored(_sample(0, Status.TRUNCATED), 0.0, ""))
    (group,) = experience.release([0])
    assert [m.sample.id for m in group.members] == [0, 1]  # by id, not by arrival
    assert dict(experience.open_groups) == {}


def test_samples_of_a_step_are_replaced_where_they_are() -> None:
    """Sample 0 ended, and waits in the experience pool for its sibling, which is carried over: both get the learner's
    log-probs of their new tokens, and nothing else changes."""
    engine = ScriptedEngine({0: [EOS], 1: [1, 1, 1, EOS]}, eos_id=EOS)
    scheduler = Scheduler(SegmentSchedule(prompts=1, group=2, tokens=2), max_tokens=6, sampling=Sampling(), seed=0)
    scheduler.begin_step([(Problem("p", "?"), PROMPT)])
    samples = [scheduler.end_segment(segment) for segment in scheduled_rollout(engine, scheduler.next_requests)]
    (finished,) = (sample for sample in samples if sample.status is Status.COMPLETE)
    scheduler.experience.add(Scored(finished, 1.0, "text", answer="7"))
    scheduler.replace(sample.with_learner_logprobs(np.full(len(sample), -0.5, np.float32)) for sample in samples)
    (carried,) = scheduler.unfinished
    (waiting,) = scheduler.experience.open_groups[0].members.values()
    assert carried.learner_logprobs is not None
    assert carried.learner_logprobs.tolist() == [-0.5, -0.5]
    assert waiting.sample.learner_logprobs is not None
    assert (waiting.sample.learner_logprobs.tolist(), waiting.reward, waiting.answer) == ([-0.5], 1.0, "7")
    with pytest.raises(KeyError):
        scheduler.replace([Sample(9, 0, PROMPT)])


def test_the_scheduler_copies_no_token_however_long_a_sample_is() -> None:
    """131,072 tokens in 8 segments: each request refers to the tokens of the segments before, and what is allocated for
    a request and its segment grows by 8 bytes for each of these, not with their 65,536 bytes."""
    scheduler = Scheduler(
        SegmentSchedule(prompts=1, group=1, tokens=16_384), max_tokens=131_072, sampling=Sampling(), seed=0
    )
    tokens, logprobs = np.full(16_384, 7, np.int32), np.zeros(16_384, np.float32)
    tracemalloc.start()
    try:
        for version in range(8):
            segment = Segment(0, tokens.copy(), logprobs, tokens, Finish.LENGTH)
            scheduler.begin_step([(Problem("0", "?"), PROMPT)] if version == 0 else [])
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            (request,) = scheduler.next_requests() or ()
            sample = scheduler.end_segment(segment)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 4096
            assert all(part is one.tokens for part, one in zip(request.output, sample.segments[:-1], strict=True))
            assert request.length == len(PROMPT) + 16_384 * version
            assert scheduler.next_requests() is None
    finally:
        tracemalloc.stop()
    assert (len(sample), sample.status) == (131_072, Status.TRUNCATED)
