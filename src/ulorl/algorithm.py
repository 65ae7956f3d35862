"""Algorithm 1 of the paper: one step of UloRL. The numbers at the right are the paper's lines.

state: unfinished pool, experience pool, global maximum output length L, maximum segment count k
a sample ends its segment by EOS (complete), by the segment length L / k (unfinished), or by L (truncated)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from ulorl.cancellation import NEVER, CancelToken
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine, EngineStats
from ulorl.learner.learner import Learner, Update
from ulorl.objective.mismatch import Mismatch
from ulorl.rollout.scheduler import Scheduler
from ulorl.types import Group, Problem, Sample, Scored, Status, Tokens


class Scorer(Protocol):
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
    """What one step did."""

    segments: tuple[Sample, ...]  # every sample that was decoded in this step, as it stands after its segment
    finished: tuple[Scored, ...]  # the complete and truncated ones among them
    groups: tuple[Group, ...]  # the groups released to the update
    update: Update
    probe: Mismatch | None  # of engine and learner with the new weights; None when they did not change
    work: EngineStats  # of the rollout; the faults are those of the whole step
    rollout_seconds: float
    update_seconds: float
    sync_seconds: float  # new weights to the engine, and the probe


Watch = Callable[[Sample], None]  # told of every sample that ends its segment: progress bars
Check = Callable[[Engine, Learner], Mismatch | None]  # do engine and learner agree on the new weights? raises if not


def ulorl_step(
    scheduler: Scheduler,
    engine: Engine,
    scorer: Scorer,
    learner: Learner,
    new: Sequence[tuple[Problem, Tokens]],
    watch: Watch = lambda _: None,
    check: Check = lambda _, __: None,
    cancel: CancelToken = NEVER,
) -> Step:
    started, stats = time.perf_counter(), replace(engine.stats)
    segments, submitted, finished = list[Sample](), list[Future[Scored]](), list[Scored]()
    for segment in rollout(engine, scheduler.begin_step(new), cancel):  # {unfinished pool, new prompts}, a segment  8
        sample = scheduler.end_segment(segment)  # unfinished: to the unfinished pool, goes on next step
        segments.append(sample)
        if sample.status is not Status.UNFINISHED:  # EOS, or L reached: to the experience pool
            submitted.append(scorer.submit(scheduler.experience.problem(sample.group_id), sample))
        watch(sample)
    for scored in scorer.wait(submitted, cancel):
        finished.append(scored)
        scheduler.experience.add(scored)
    rolled_out, work = time.perf_counter(), engine.stats.since(stats)
    engine.sleep()
    groups = scheduler.experience.release()  # groups whose siblings are all finished
    update = learner.update(groups, cancel)  # on whatever is ready                                            11
    updated, probe = time.perf_counter(), None
    if update.steps:
        engine.load_weights(learner.weights(), learner.version)
        probe = check(engine, learner)
    seconds = (rolled_out - started, updated - rolled_out, time.perf_counter() - updated)
    work = work.with_faults(engine.stats.since(stats))
    return Step(tuple(segments), tuple(finished), tuple(groups), update, probe, work, *seconds)
