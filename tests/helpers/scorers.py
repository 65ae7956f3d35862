"""Scorers for tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from ulorl.cancellation import NEVER, CancelToken
from ulorl.types import Problem, Sample, Scored


class ScorerOf(ABC):
    """A scorer whose futures are complete at once."""

    @abstractmethod
    def score(self, problem: Problem, sample: Sample) -> Scored:
        """Score one sample."""

    def submit(self, problem: Problem, sample: Sample) -> Future[Scored]:
        """Return the future of a scored sample."""
        future = Future[Scored]()
        future.set_result(self.score(problem, sample))
        return future

    def wait(self, futures: Sequence[Future[Scored]], cancel: CancelToken = NEVER) -> Iterator[Scored]:
        """Yield the scored samples."""
        for future in futures:
            cancel.check()
            yield future.result()
