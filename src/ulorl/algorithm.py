"""Algorithm 1 of the paper: one step of UloRL. The numbers at the right are the lines of the paper's listing.

State: the unfinished pool, the experience pool, the global maximum output length L and the maximum segment count k.
A sample ends its segment by EOS (complete), at the segment length L / k (unfinished), or at L (truncated). With other
schedules than the paper's, a segment also ends (unfinished) with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from ulorl.cancellation import NEVER, CancelToken
from ulorl.common.full_collections import no_full_collections
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.engine import Engine
from ulorl.learner.learner import Trainer
from ulorl.learner.update_result import Update
from ulorl.rollout.scheduler import Scheduler
from ulorl.types import Group, Problem, Prompted, Sample, Scored, Status


class SampleScorer(Protocol):
    """Judges finished samples. The reward is 1 for a right answer, 0 for a wrong, missing or truncated one, None when
    the reward fails."""

    def submit(self, problem: Problem, sample: Sample) -> Future[Scored]:
        """Begin to judge a sample."""
        ...

    def wait(self, futures: Sequence[Future[Scored]], cancel: CancelToken) -> Iterator[Scored]:
        """Yield the scored samples, in the order of the futures. Raises Cancelled."""
        ...


@dataclass(frozen=True)
class Step:
    """The result of one step."""

    segments: tuple[Sample, ...]  # every sample that was decoded in this step, as its segment left it
    finished: tuple[Scored, ...]  # the complete and truncated ones among them
    groups: tuple[Group, ...]  # the groups released to the update
    update: Update
    released: tuple[Group, ...] | None = None  # with overlap: the groups released to the update of the next step


def ulorl_step(
    scheduler: Scheduler,
    engine: Engine,
    scorer: SampleScorer,
    learner: Trainer,
    problems: Iterable[Prompted],
    cancel: CancelToken = NEVER,
    record: Callable[[Sequence[Sample], CancelToken], Iterable[Sample]] | None = None,
) -> Step:
    """Make one step of Algorithm 1. problems: with their encoded prompts; the schedule decides how many enter.

    record: returns the samples with what the update must know of their new tokens under the weights that drew them
    (`learner.behaviour.record_behaviour`); None: nothing.

    Raises Cancelled as long as the weights have not changed; the pools then hold a half-finished step.
    """
    segments, judged, finished = list[Sample](), dict[int, Future[Scored]](), list[Scored]()
    scheduler.begin_step(problems)
    with no_full_collections():
        for segment in scheduled_rollout(engine, scheduler.next_requests, cancel):  # {unfinished pool, new prompts} 8
            sample = scheduler.end_segment(segment)  # neither EOS nor L: to the unfinished pool, for the next step  9
            if not len(segment):  # stopped before its first token
                continue
            segments.append(sample)
            if sample.status is not Status.UNFINISHED:  # EOS or L: to the experience pool, with its reward
                judged[sample.id] = scorer.submit(scheduler.experience.problem(sample.group_id), sample)
    segments.sort(key=lambda sample: sample.id)  # the order in which segments end depends on the engines' clocks
    for scored in scorer.wait([judged[id] for id in sorted(judged)], cancel):
        finished.append(scored)
        scheduler.experience.add(scored)
    engine.sleep()
    if record:
        scheduler.replace(record(segments, cancel))
    groups = scheduler.release()  # groups whose samples are all finished
    update = learner.update(groups, cancel)  # on the experience that is ready                                      11
    if update.steps:
        new_weights = learner.publish()
        engine.load_weights(new_weights.tensors, new_weights.version)  # the next segments come from the new weights
    return Step(tuple(segments), tuple(finished), tuple(groups), update)
