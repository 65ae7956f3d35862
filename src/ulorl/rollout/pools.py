"""The two pools of Algorithm 1. Nothing in them is dropped, duplicated or reordered by chance: everything leaves in the
order of its ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ulorl.types import Group, Problem, Sample, Scored, Segment, Status, Tokens

_UNFINISHED = Status.UNFINISHED  # Python 3.11 takes a function call for each look-up in an enum


class UnfinishedPool:
    """Samples that neither ended nor reached the global maximum length. They stay here while they decode, so that each
    sample is in one of the two pools."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples: dict[int, Sample] = {}
        self._lengths: dict[int, int] = {}  # every step asks for all of them, and samples are far apart in memory
        for sample in samples:
            self.put(sample)

    def put(self, sample: Sample) -> None:
        """Add an unfinished sample. Raises ValueError for a finished one and one that is in the pool already."""
        if sample.status is not _UNFINISHED:
            raise ValueError(f"sample {sample.id} is {sample.status}; the unfinished pool takes unfinished ones only")
        if sample.id in self._samples:
            raise ValueError(f"sample {sample.id} is in the unfinished pool already")
        self._samples[sample.id] = sample
        self._lengths[sample.id] = len(sample)

    def start(self, ids: Iterable[int], group_id: int, prompt: Tokens) -> None:
        """Add new samples of a group, whose ids were never used before."""
        for id in ids:
            self._samples[id] = Sample(id, group_id, prompt)
            self._lengths[id] = 0

    def replace(self, sample: Sample) -> None:
        """Put a sample of the same length in the place of the one with its id. Raises KeyError when there is none."""
        self._samples[self._samples[sample.id].id] = sample

    def append(self, segment: Segment, status: Status) -> Sample:
        """Append a segment to its sample, and return the sample. It leaves the pool when `status` is that of a finished
        one. Raises KeyError when the pool does not have it."""
        id = segment.sample_id
        old = self._samples[id]
        sample = Sample(id, old.group_id, old.prompt, (*old.segments, segment), status)
        if status is _UNFINISHED:
            self._samples[id] = sample
            self._lengths[id] += len(segment.tokens)
        else:
            del self._samples[id], self._lengths[id]
        return sample

    @property
    def samples(self) -> Mapping[int, Sample]:
        """The samples by id."""
        return self._samples

    @property
    def lengths(self) -> Mapping[int, int]:
        """The output tokens of each sample so far, by id."""
        return self._lengths

    def __iter__(self) -> Iterator[Sample]:
        """Iterate over the samples in the order of their ids."""
        return map(self._samples.__getitem__, sorted(self._samples))

    def __len__(self) -> int:
        return len(self._samples)


@dataclass
class OpenGroup:
    """A problem whose group was not released, with its finished samples by sample id. tokens: of their outputs."""

    problem: Problem
    members: dict[int, Scored] = field(default_factory=dict)
    tokens: int = 0


class ExperiencePool:
    """Holds finished samples until all samples of their problem are finished: GRPO compares whole groups (eq. 4).

    size: G, the samples of a problem. A group is opened when its samples enter the rollout, and released once, whole.
    released: groups that were released and wait for the update of the next step (`rollout.overlap`).
    """

    def __init__(
        self, size: int, groups: Mapping[int, OpenGroup] | None = None, released: Iterable[Group] = ()
    ) -> None:
        self.size = size
        self._groups: dict[int, OpenGroup] = dict(groups or {})
        self._released: list[Group] = list(released)

    @property
    def open_groups(self) -> Mapping[int, OpenGroup]:
        """Groups opened and not yet released, by group id."""
        return self._groups

    def open(self, group_id: int, problem: Problem) -> None:
        """Open a group without finished samples. Raises ValueError when it is open already."""
        if group_id in self._groups:
            raise ValueError(f"group {group_id} is open already")
        self._groups[group_id] = OpenGroup(problem)

    def problem(self, group_id: int) -> Problem:
        """Return the problem of an open group."""
        return self._groups[group_id].problem

    def add(self, scored: Scored) -> None:
        """Add a finished sample. Raises ValueError for an unfinished one and one that is in the pool already."""
        sample = scored.sample
        if sample.status is _UNFINISHED:
            raise ValueError(f"sample {sample.id} is unfinished; the experience pool takes finished ones only")
        group = self._groups[sample.group_id]
        if sample.id in group.members:
            raise ValueError(f"sample {sample.id} is in the experience pool already")
        group.members[sample.id] = scored
        group.tokens += len(sample)

    def replace(self, sample: Sample) -> None:
        """Put a finished sample in the place of the one with its id; its reward stays. Raises KeyError when there is
        none."""
        members = self._groups[sample.group_id].members
        scored = members[sample.id]
        members[sample.id] = Scored(sample, scored.reward, scored.text, scored.error, scored.answer)

    @property
    def finished_groups(self) -> dict[int, int]:
        """The output tokens of each open group whose samples are all finished, by group id."""
        return {id: group.tokens for id, group in self._groups.items() if len(group.members) == self.size}

    def release(self, ids: Iterable[int]) -> list[Group]:
        """Remove and return groups whose samples are all finished. Raises ValueError for any other group."""
        released = []
        for id in ids:
            if len(self._groups[id].members) != self.size:
                raise ValueError(f"group {id} has {len(self._groups[id].members)} of {self.size} finished samples")
            released.append(self._closed(id, self._groups.pop(id)))
        return released

    @property
    def released(self) -> Sequence[Group]:
        """Groups that were released and wait for an update, in the order in which they were kept."""
        return self._released

    def keep(self, groups: Iterable[Group]) -> None:
        """Keep released groups for the next update."""
        self._released += groups

    def take_released(self) -> list[Group]:
        """Remove and return the groups that were kept."""
        taken, self._released = self._released, []
        return taken

    @staticmethod
    def _closed(id: int, group: OpenGroup) -> Group:
        return Group(id, group.problem, tuple([group.members[id] for id in sorted(group.members)]))

    def __len__(self) -> int:
        """Return the number of finished samples in open groups."""
        return sum(len(group.members) for group in self._groups.values())
