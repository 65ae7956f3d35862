"""Both pools through a checkpoint's values and arrays: what comes back is what was there."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ulorl.rollout.pool_io import Pools, dump, read
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.types import Finish, Problem, Sample, Scored, Segment, Status

lengths = st.lists(st.integers(0, 5), max_size=3)


def make_sample(id: int, segments: list[int], status: Status) -> Sample:
    draw = np.random.default_rng(id)
    parts = tuple(
        Segment(
            id,
            draw.integers(0, 1000, n).astype(np.int32),
            -draw.random(n, np.float32),
            np.full(n, version, np.int32),
            Finish.LENGTH if version + 1 < len(segments) or status is not Status.COMPLETE else Finish.EOS,
        )
        for version, n in enumerate(segments)
    )
    return Sample(id, id // 2, draw.integers(0, 1000, 1 + id % 4).astype(np.int32), parts, status)


def make_pools(unfinished: list[list[int]], finished: list[list[int]], released: int = 0) -> Pools:
    """Samples 2i are finished, with a sibling that is not: their groups stay open. Groups from 100 on are released."""
    experience = ExperiencePool(2)
    for id in range(100, 100 + released):
        experience.open(id, Problem(f"p{id}", "?"))
        for sample_id in (2 * id + 1, 2 * id):
            experience.add(Scored(make_sample(sample_id, [2, id % 3], Status.COMPLETE), 1.0, "text", answer=None))
    experience.keep(experience.release(experience.finished_groups))
    for i, segments in enumerate(finished):
        experience.open(i, Problem(f"p{i}", "2+2\u2026?", "4", {"n": [1, None]}))
        status = Status.COMPLETE if i % 2 else Status.TRUNCATED
        reward = (1.0, 0.0, None)[i % 3]
        experience.add(Scored(make_sample(2 * i, segments, status), reward, f"text {i}", "" if reward else "died"))
    waiting = [make_sample(2 * i + 1, segments, Status.UNFINISHED) for i, segments in enumerate(unfinished)]
    return Pools(UnfinishedPool(waiting), experience)


def facts(pools: Pools) -> object:
    def plain(s: Sample) -> object:
        parts = [(p.sample_id, p.tokens.tolist(), p.logprobs.tolist(), p.versions.tolist(), p.finish)
                 for p in s.segments]  # fmt: skip
        return s.id, s.group_id, s.prompt.tolist(), s.status, parts, s.tokens.dtype, s.logprobs.dtype

    def members(scored: Iterable[Scored]) -> object:
        return [(plain(m.sample), m.reward, m.text, m.error, m.answer) for m in scored]

    experience = pools.experience
    groups = {id: (g.problem, members(g.members.values())) for id, g in experience.open_groups.items()}
    released = [(g.id, g.problem, members(g.members)) for g in experience.released]
    return [plain(s) for s in pools.unfinished], groups, released


@settings(deadline=None, max_examples=60)
@given(unfinished=st.lists(lengths, max_size=4), finished=st.lists(lengths, max_size=4), released=st.integers(0, 2))
def test_what_is_dumped_is_read_again(unfinished: list[list[int]], finished: list[list[int]], released: int) -> None:
    pools = make_pools(unfinished, finished, released)
    meta, arrays = dump(pools)
    assert ("released" in meta) == bool(released)  # without overlap, checkpoints are those of earlier versions
    assert facts(read(json.loads(json.dumps(meta)), arrays, 2)) == facts(pools)
    if arrays["tokens"].size:
        with pytest.raises(ValueError, match="do not add up"):
            read(meta, {**arrays, "tokens": np.append(arrays["tokens"], np.int32(7))}, 2)


def test_the_learners_log_probs_are_dumped_where_all_segments_have_them() -> None:
    samples = [make_sample(id, [2, 3], Status.UNFINISHED) for id in (1, 3)]
    recorded = []
    for one in samples:
        segments = [Sample(one.id, 0, one.prompt, (s,)).with_learner_logprobs(s.logprobs - 1) for s in one.segments]
        recorded.append(Sample(one.id, one.group_id, one.prompt, tuple(s.segments[0] for s in segments), one.status))
    meta, arrays = dump(Pools(UnfinishedPool(recorded), ExperiencePool(2)))
    for found, expected in zip(read(meta, arrays, 2).unfinished, samples, strict=True):
        assert found.learner_logprobs is not None
        assert found.learner_logprobs.tolist() == (expected.logprobs - 1).tolist()
    for mixed in (samples, [recorded[0], samples[1]]):
        meta, arrays = dump(Pools(UnfinishedPool(mixed), ExperiencePool(2)))
        assert "learner_logprobs" not in arrays
        assert [s.learner_logprobs for s in read(meta, arrays, 2).unfinished] == [None, None]


def test_a_copy_does_not_change() -> None:
    pools = make_pools([[2]], [[3], [1, 1]], released=1)
    copy = pools.copy()
    before = facts(copy)
    for sample in list(pools.unfinished):
        pools.unfinished.append(make_sample(sample.id, [4], Status.COMPLETE).segments[0], Status.COMPLETE)
    pools.experience.add(Scored(make_sample(1, [4], Status.COMPLETE), 1.0, "late"))
    pools.experience.keep(pools.experience.release(pools.experience.finished_groups))
    pools.experience.take_released()
    pools.experience.open(9, Problem("p9", "?"))
    assert facts(copy) == before
    assert facts(pools) != before
