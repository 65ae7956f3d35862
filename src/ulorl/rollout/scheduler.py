"""Segment rollout (section 3.1, Algorithm 1): which samples enter a step, when they end, which are carried over.

The scheduler holds both pools and the samples in flight, so that every sample is in exactly one place. It knows no
engine: it returns requests and takes segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ulorl.rng import sample_seeds
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.types import Finish, Problem, Prompted, Request, Sample, Sampling, Segment, Status, Tokens


class Scheduler:
    """Gives each sample at most one segment a step.

    group: samples a problem (G). segment_tokens: the segment length L / k. max_tokens: the global maximum output
    length L. seed: the run's. `next_group` counts the groups opened so far; sample ids are group id * G + member.
    """

    def __init__(
        self,
        *,
        group: int,
        segment_tokens: int,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
        unfinished: UnfinishedPool | None = None,
        experience: ExperiencePool | None = None,
        next_group: int = 0,
    ) -> None:
        self.group = group
        self.segment_tokens = segment_tokens
        self.max_tokens = max_tokens
        self.sampling = sampling
        self.seed = seed
        # `is None`: a pool without a finished or unfinished sample is falsy, and may still hold open groups
        self.unfinished = UnfinishedPool() if unfinished is None else unfinished
        self.experience = ExperiencePool(group) if experience is None else experience
        self.next_group = next_group
        self._in_flight: dict[int, tuple[Sample, Request]] = {}

    @property
    def in_flight(self) -> int:
        """The number of samples whose request is out and whose segment has not come back."""
        return len(self._in_flight)

    def begin_step(self, new: Sequence[Prompted]) -> list[Request]:
        """Return the requests of this step: the unfinished pool, then G samples of each new problem (line 8).

        new: problems with their encoded prompts. Carried samples come first: they are the longest. Raises
        RuntimeError while samples are in flight.
        """
        if self._in_flight:
            raise RuntimeError(f"{self.in_flight} samples are still in flight; end their segments first")
        entering = self.unfinished.take_all()
        for problem, prompt in new:
            entering += self._open_group(problem, prompt)
        seeds = sample_seeds(self.seed, [sample.id for sample in entering])
        requests = [self._request(sample, seed) for sample, seed in zip(entering, seeds, strict=True)]
        self._in_flight = {sample.id: (sample, request) for sample, request in zip(entering, requests, strict=True)}
        return requests

    def end_segment(self, segment: Segment) -> Sample:
        """Append a segment to its sample and return the sample. An unfinished sample is put into the unfinished pool; a
        finished one must be scored and added to the experience pool by the caller. Raises ValueError for a segment that
        no request is out for, or that breaks the budget of its request."""
        if segment.sample_id not in self._in_flight:
            raise ValueError(f"segment of sample {segment.sample_id}, which is not in flight")
        sample, request = self._in_flight[segment.sample_id]
        status = self._status(segment, request)
        joined = Sample(sample.id, sample.group_id, sample.prompt, (*sample.segments, segment), status)
        del self._in_flight[segment.sample_id]
        if status is Status.UNFINISHED:
            self.unfinished.put(joined)
        return joined

    def _open_group(self, problem: Problem, prompt: Tokens) -> list[Sample]:
        group_id = self.next_group
        self.next_group += 1
        self.experience.open(group_id, problem)
        return [Sample(group_id * self.group + member, group_id, prompt) for member in range(self.group)]

    def _request(self, sample: Sample, seed: int) -> Request:
        """Return the request of the sample's next segment: never for more than the sample has left of L."""
        prompt = sample.prompt
        tokens = np.concatenate([prompt, *[s.tokens for s in sample.segments]]) if sample.segments else prompt
        budget = min(self.segment_tokens, self.max_tokens - (len(tokens) - len(prompt)))
        return Request(sample.id, tokens, len(prompt), budget, self.sampling, seed)

    def _status(self, segment: Segment, request: Request) -> Status:
        """Return the status of a sample after `segment`, the result of `request`. The engine's finish reason decides,
        not the length: EOS exactly on a boundary is complete."""
        n, budget = len(segment.tokens), request.max_new_tokens
        if n > budget:
            raise ValueError(f"sample {request.sample_id}: {n} tokens came back, its budget was {budget}")
        if segment.finish is Finish.EOS:
            return Status.COMPLETE
        if segment.finish is Finish.LENGTH and n < budget:
            raise ValueError(f"sample {request.sample_id}: finish 'length' after {n} of {budget} tokens")
        at_the_end = request.output_length + n == self.max_tokens
        return Status.TRUNCATED if at_the_end else Status.UNFINISHED
