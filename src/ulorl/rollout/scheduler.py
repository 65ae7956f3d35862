"""The state of the rollout (section 3.1, Algorithm 1): samples enter a step, their segments end, some are carried over.

The scheduler holds both pools, and every sample is in exactly one of them. It knows no engine: it returns requests and
takes segments. When they enter is what its schedule decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from ulorl.rng import sample_seeds
from ulorl.rollout.dispatch import Admitted, StepDispatch, ready_groups
from ulorl.rollout.expected_length import ExpectedLengths
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.schedules import Schedule
from ulorl.types import Finish, Group, Problem, Prompted, Request, Sample, Sampling, Segment, Status, Tokens

# Python 3.11 takes a function call for each look-up in an enum.
_EOS, _LENGTH = Finish.EOS, Finish.LENGTH
_COMPLETE, _TRUNCATED, _UNFINISHED = Status.COMPLETE, Status.TRUNCATED, Status.UNFINISHED


class Scheduler:
    """Turns the decisions of a schedule into requests, and segments into samples.

    max_tokens: the global maximum output length L. seed: the run's. `next_group` counts the groups opened so far;
    sample ids are group id * G + member. lengths: of earlier visits of the problems, which are kept only for a schedule
    that admits the longest first. slots: the samples that all engines together decode at once; 0: unknown.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        unfinished: UnfinishedPool | None = None,
        experience: ExperiencePool | None = None,
        lengths: ExpectedLengths | None = None,
        next_group: int = 0,
        slots: int = 0,
    ) -> None:
        self.schedule = schedule
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.seed = seed
        # `is None`: a pool without a finished or unfinished sample is falsy, and may still hold open groups
        self.unfinished = UnfinishedPool() if unfinished is None else unfinished
        self.experience = ExperiencePool(schedule.group) if experience is None else experience
        self.lengths = ExpectedLengths() if lengths is None else lengths
        self.next_group = next_group
        self._longest_first, self._slots = schedule.order == "longest", slots
        self._step: StepDispatch | None = None
        self._problems: Iterator[Prompted] = iter(())
        self._in_flight: dict[int, int] = {}  # the budget of each request that is out, by sample id

    @property
    def group(self) -> int:
        """Samples a problem (G)."""
        return self.schedule.group

    @property
    def in_flight(self) -> int:
        """The number of samples whose request is out and whose segment has not come back."""
        return len(self._in_flight)

    def begin_step(self, problems: Iterable[Prompted]) -> None:
        """Begin a step with the unfinished pool and as many of `problems` as the schedule takes (line 8).

        problems: with their encoded prompts; they are drawn when they enter. Raises RuntimeError while samples are in
        flight.
        """
        if self._in_flight:
            raise RuntimeError(f"{self.in_flight} samples are still in flight; end their segments first")
        self._problems = iter(problems)
        lengths = self.unfinished.lengths
        self._step = StepDispatch(
            self.schedule,
            self.max_tokens,
            {id: lengths[id] for id in sorted(lengths)},
            {id: group.tokens for id, group in self.experience.open_groups.items()},
            versions=self._versions(),
            slots=self._slots,
            visited=self._visited,
            next_group=self.next_group,
        )

    def next_requests(self) -> list[Request] | None:
        """Return the requests that enter the engine now, often none. Return None when the step is over.

        The samples that are in flight then must be stopped, and their segments ended. Raises RuntimeError without a
        step in progress.
        """
        if self._step is None:
            raise RuntimeError("no step is in progress; call begin_step first")
        admitted = None if self._step.over else self._admitted(self._step)
        if admitted is None or self._step.over:
            self._step = None
            return None
        return self._requests(*admitted) if admitted[0] else []

    def end_segment(self, segment: Segment) -> Sample:
        """Append a segment to its sample and return the sample. An unfinished sample stays in the unfinished pool; a
        finished one must be scored and added to the experience pool by the caller. Raises ValueError for a segment that
        no request is out for, or that breaks the budget of its request."""
        id, tokens = segment.sample_id, len(segment.tokens)
        budget = self._in_flight.get(id)
        if budget is None:
            raise ValueError(f"segment of sample {id}, which is not in flight")
        length = self.unfinished.lengths[id] + tokens
        status = self._status(segment, budget, length)
        del self._in_flight[id]
        sample = self.unfinished.append(segment, status) if tokens else self.unfinished.samples[id]
        if self._step:
            self._step.ended(id, length, finished=sample.status is not _UNFINISHED)
        return sample

    def replace(self, samples: Iterable[Sample]) -> None:
        """Put samples of the step, which hold more about their tokens, in the place of those with their ids: in the
        unfinished pool, or in the experience pool. Raises KeyError for a sample that is in neither."""
        for sample in samples:
            pool = self.unfinished if sample.status is _UNFINISHED else self.experience
            pool.replace(sample)

    def release(self) -> list[Group]:
        """Remove and return the groups to train, in the order of their ids: of those whose samples are all finished, as
        many as the schedule trains in a step."""
        finished = self.experience.finished_groups
        unfinished = self.experience.open_groups.keys() - finished.keys()
        ready = ready_groups(finished, unfinished, self.schedule.window)
        released = self.experience.release(ready[: self.schedule.trained([finished[id] for id in ready])])
        if self._longest_first:
            for group in released:
                self.lengths.learn(group.problem.id, finished[group.id], self.group)
        return released

    def _admitted(self, step: StepDispatch) -> Admitted:
        for problem, prompt in islice(self._problems, step.new_groups()):
            self._open_group(step, problem, prompt)
        return step.admit()

    def _versions(self) -> dict[int, int]:
        """Return how many versions drew the tokens of each sample that may be near `max_versions`, by id."""
        least = self.schedule.max_versions - 1
        if least < 1:
            return {}
        samples = self.unfinished.samples.values()
        return {one.id: one.version_count for one in samples if len(one.segments) >= least}

    def _visited(self, group: int) -> float:
        return self.lengths.mean(self.experience.problem(group).id)

    def _open_group(self, step: StepDispatch, problem: Problem, prompt: Tokens) -> None:
        id = self.next_group
        self.next_group += 1
        self.experience.open(id, problem)
        step.open(id)
        self.unfinished.start(range(id * self.group, (id + 1) * self.group), id, prompt)

    def _requests(self, ids: Sequence[int], budgets: Sequence[int], expected: Sequence[int]) -> list[Request]:
        self._in_flight.update(zip(ids, budgets, strict=True))
        seeds = sample_seeds(self.seed, ids)  # many at once are 50 times as fast as one by one
        entering = map(self.unfinished.samples.__getitem__, ids)
        return [
            Request(one.id, one.prompt, budget, self.sampling, seed, tokens, tuple([s.tokens for s in one.segments]))
            for one, budget, seed, tokens in zip(entering, budgets, seeds, expected, strict=True)
        ]

    def _status(self, segment: Segment, budget: int, length: int) -> Status:
        """Return the status of a sample after `segment`, the result of a request with `budget`, with which it has
        `length` tokens. The engine's finish reason decides, not the length: EOS exactly on a boundary is complete."""
        n, id = len(segment.tokens), segment.sample_id
        if n > budget:
            raise ValueError(f"sample {id}: {n} tokens came back, its budget was {budget}")
        if segment.finish is _EOS:
            return _COMPLETE
        if n == budget:
            return _TRUNCATED if length == self.max_tokens else _UNFINISHED
        if segment.finish is _LENGTH:
            raise ValueError(f"sample {id}: finish 'length' after {n} of {budget} tokens")
        return _UNFINISHED
