"""Turns both pools and the lengths of earlier visits into plain values and arrays, as checkpoints store them, and
back. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulorl.rollout.expected_length import ExpectedLengths
from ulorl.rollout.pools import ExperiencePool, OpenGroup, UnfinishedPool
from ulorl.types import Finish, Group, Problem, Sample, Scored, Segment, Status

Arrays = dict[str, NDArray[Any]]
_SCORED = ("reward", "text", "error", "answer")  # older checkpoints have no answer


@dataclass(frozen=True)
class Pools:
    """The unfinished pool and the experience pool of a run, and the lengths of earlier visits of its problems."""

    unfinished: UnfinishedPool
    experience: ExperiencePool
    lengths: ExpectedLengths = field(default_factory=ExpectedLengths)

    def copy(self) -> Pools:
        """Return independent copies. They share the samples, which never change."""
        groups = {id: OpenGroup(g.problem, dict(g.members), g.tokens) for id, g in self.experience.open_groups.items()}
        return Pools(
            UnfinishedPool(self.unfinished),
            ExperiencePool(self.experience.size, groups, self.experience.released),
            ExpectedLengths(self.lengths.visits),
        )


def dump(pools: Pools) -> tuple[dict[str, Any], Arrays]:
    """Return what describes each sample and group, as JSON values, and the tokens, log-probs and versions of all
    samples end to end, as arrays."""
    groups = [(id, group.problem, [*group.members.values()]) for id, group in pools.experience.open_groups.items()]
    released = [(group.id, group.problem, [*group.members]) for group in pools.experience.released]
    scored = [member for _, _, members in (*groups, *released) for member in members]
    samples = [*pools.unfinished, *(one.sample for one in scored)]
    segments = [segment for sample in samples for segment in sample.segments]
    arrays = {
        "prompts": _joined((s.prompt for s in samples), np.int32),
        "tokens": _joined((s.tokens for s in segments), np.int32),
        "logprobs": _joined((s.logprobs for s in segments), np.float32),
        "versions": _joined((s.versions for s in segments), np.int32),
    }
    learner = [s.learner_logprobs for s in segments if s.learner_logprobs is not None]
    if learner and len(learner) == len(segments):  # recorded for every segment, or for none
        arrays["learner_logprobs"] = _joined(learner, np.float32)
    meta: dict[str, Any] = {
        "samples": [
            {
                "id": s.id,
                "group": s.group_id,
                "status": s.status,
                "prompt": len(s.prompt),
                "segments": [[len(segment), segment.finish] for segment in s.segments],
            }
            for s in samples
        ],
        "groups": [_group_meta(*group) for group in groups],
    }
    if released:
        meta["released"] = [_group_meta(*group) for group in released]
    if pools.lengths.visits:
        meta["visits"] = dict(pools.lengths.visits)
    return meta, arrays


def read(meta: dict[str, Any], arrays: Arrays, group: int) -> Pools:
    """Rebuild the pools from what `dump` returned, with `group` samples a problem. Raises ValueError, KeyError or
    TypeError when meta and arrays do not fit."""
    samples = {sample.id: sample for sample in _read_samples(meta["samples"], arrays)}

    def members(group_meta: dict[str, Any]) -> dict[int, Scored]:
        return {
            m["id"]: Scored(samples.pop(m["id"]), **{name: m[name] for name in _SCORED if name in m})
            for m in group_meta["members"]
        }

    def open_group(group_meta: dict[str, Any]) -> OpenGroup:
        finished = members(group_meta)
        tokens = sum(len(one.sample) for one in finished.values())
        return OpenGroup(Problem(**group_meta["problem"]), finished, tokens)

    groups = {g["id"]: open_group(g) for g in meta["groups"]}
    released = [Group(g["id"], Problem(**g["problem"]), tuple(members(g).values())) for g in meta.get("released", ())]
    visits = {problem: (int(tokens), int(samples)) for problem, (tokens, samples) in meta.get("visits", {}).items()}
    return Pools(UnfinishedPool(samples.values()), ExperiencePool(group, groups, released), ExpectedLengths(visits))


def _group_meta(id: int, problem: Problem, members: Iterable[Scored]) -> dict[str, Any]:
    scored = [{name: getattr(one, name) for name in _SCORED} | {"id": one.sample.id} for one in members]
    return {"id": id, "problem": asdict(problem), "members": scored}


def _read_samples(metas: Iterable[dict[str, Any]], arrays: Arrays) -> Iterable[Sample]:
    prompt_at = token_at = 0
    for meta in metas:
        segments = []
        for length, finish in meta["segments"]:
            part = slice(token_at, token_at + length)
            tokens, logprobs, versions = (arrays[name][part].copy() for name in ("tokens", "logprobs", "versions"))
            learner = arrays["learner_logprobs"][part].copy() if "learner_logprobs" in arrays else None
            segments.append(Segment(meta["id"], tokens, logprobs, versions, Finish(finish), learner))
            token_at += length
        prompt = arrays["prompts"][prompt_at : prompt_at + meta["prompt"]].copy()
        prompt_at += meta["prompt"]
        yield Sample(meta["id"], meta["group"], prompt, tuple(segments), Status(meta["status"]))
    if token_at != len(arrays["tokens"]) or prompt_at != len(arrays["prompts"]):
        raise ValueError("the samples' lengths do not add up to the stored tokens")


def _joined(arrays: Iterable[NDArray[Any]], dtype: type) -> NDArray[Any]:
    parts = list(arrays)
    return np.concatenate(parts) if parts else np.empty(0, dtype)
