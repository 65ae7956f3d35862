"""Measures the controller alone, with engines that need no time: scheduler, schedule and pools, and a fleet over them.

Outputs have 1 to 64 tokens, the same number in all samples of a group. Each schedule has the stated number of samples
in flight; more come back in a step that refills. "refill, longest first" has every limit: three versions and a window.
The steps that are measured follow three others, which fill the pools. Prompts and outputs are short, so that the
work for each sample is measured and not that for each token. The engines make their segments in the same thread, and
that time is subtracted. CPU seconds are measured, because other processes may share the cores; the controller waits for
nothing here. They do not include the full garbage collection that Python makes outside of rollouts, about once a step;
it is measured by itself, with all samples in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np

from ulorl.bench.direct_worker import DirectWorker
from ulorl.bench.machine_facts import facts
from ulorl.common.full_collections import no_full_collections
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.worker import Progress
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Problem, Prompted, Request, Sampling, Scored, Segment, Status

ENGINES = 256
SLOTS = 128
GROUP = 8
SEGMENT, TICK = 16, 8  # tokens
LONGEST = 64  # tokens
WINDOW = 10_000  # groups, of the schedule with every limit
WARM_UP, STEPS = 3, 3
PROMPT = 64
EOS, TOKEN, VOCABULARY = 0, 5, 1000


def run(samples: Sequence[int] = (10_000, 100_000), engines: int = ENGINES) -> dict[str, Any]:
    """Measure steps of each schedule with each number of samples in flight, without a fleet and, unless `engines` is 0,
    with one. Raises RuntimeError when a sample is lost."""
    about = facts()
    sizes = [
        {"schedule": name, "samples": number, **_measure(schedule, engines)}
        for number in samples
        for name, schedule in _schedules(number).items()
    ]
    return {"benchmark": "controller", **about, "engines": engines, "slots": SLOTS, "sizes": sizes}


def _schedules(samples: int) -> dict[str, Schedule]:
    """Return schedules with `samples` samples in flight."""
    mean = (1 + LONGEST // SEGMENT) / 2  # segments of a sample
    half = samples // GROUP // 2  # the groups of a step
    return {
        "segment": SegmentSchedule(prompts=round(samples / GROUP / mean), group=GROUP, tokens=SEGMENT),
        "oversubscribe": OversubscribeSchedule(prompts=half, group=GROUP, factor=2),
        "refill": RefillSchedule(prompts=half, group=GROUP, factor=2),
        "refill, longest first": RefillSchedule(
            prompts=half, group=GROUP, factor=2, order="longest", max_versions=3, window=WINDOW
        ),
    }


def _length(sample: int) -> int:
    """Return the output tokens of a sample."""
    return 1 + sample // GROUP * 37 % LONGEST


def _measure(schedule: Schedule, engines: int) -> dict[str, Any]:
    """Return the CPU seconds of steps without a fleet and, unless `engines` is 0, with one of `engines` engines."""
    worker, workers = _worker(), [_worker() for _ in range(engines)]
    alone = _steps(schedule, _Alone(worker), [worker])
    if not engines:
        return alone
    fleet = EngineFleet(
        workers,
        remake=lambda _: _worker(),
        checks=SegmentChecks([EOS], VOCABULARY, Sampling()),
        settings=FleetSettings(slots=SLOTS, group=GROUP),
    )
    with closing(fleet):
        return {**alone, "fleet_cpu_seconds": _steps(schedule, fleet, workers)["cpu_seconds"]}


def _worker() -> DirectWorker:
    return DirectWorker(TOKEN, EOS, _length)


class _Alone:
    """As much of an `Engine` as a step needs, of one worker without a fleet."""

    def __init__(self, worker: DirectWorker) -> None:
        self._worker, self._added, self._ended = worker, list[Request](), list[Segment]()
        self.pending = 0
        self._collect()

    def add(self, request: Request) -> None:
        self.pending += 1
        self._added.append(request)

    def step(self) -> list[Segment]:
        self._worker.decode(self._added)
        self._added.clear()
        ended, self._ended = self._ended, []
        self.pending -= len(ended)
        return ended

    def abort(self) -> list[Segment]:
        self._worker.abort()
        return self.step()

    def load_weights(self, weights: Iterable[Any], version: int) -> None:
        self._worker.load_weights(weights, version)

    def _collect(self) -> None:
        self._worker.collect().add_done_callback(self._take)

    def _take(self, report: Future[Progress]) -> None:
        self._ended += report.result().segments
        self._collect()


def _steps(schedule: Schedule, engine: _Alone | EngineFleet, workers: Sequence[DirectWorker]) -> dict[str, Any]:
    """Return the CPU seconds of steps but for those of `workers`, and how many samples came back in each."""
    scheduler = Scheduler(schedule, max_tokens=LONGEST, sampling=Sampling(), seed=0)
    prompt = np.ones(PROMPT, np.int32)
    problems = ((Problem(str(number), "?"), prompt) for number in count())
    seconds, returned, trained = [], [], 0
    for step in range(WARM_UP + STEPS):
        started, before = time.process_time(), sum(worker.seconds for worker in workers)
        with no_full_collections():
            returned.append(_rollout(scheduler, engine, workers, problems))
            trained += len(scheduler.release())
        engine.load_weights([], step + 1)
        in_workers = sum(worker.seconds for worker in workers) - before
        seconds.append(round(time.process_time() - started - in_workers, 3))
    held = len(scheduler.unfinished) + len(scheduler.experience) + GROUP * trained
    if held != GROUP * scheduler.next_group:
        raise RuntimeError(f"{held} of {GROUP * scheduler.next_group} samples are left")
    seconds, returned = seconds[WARM_UP:], returned[WARM_UP:]
    return {
        "came_back": returned,
        "cpu_seconds": seconds,
        "microseconds_a_sample": round(1e6 * sum(seconds) / sum(returned), 1),
        "collection_cpu_seconds": _seconds_of_a_collection(),
    }


def _rollout(scheduler: Scheduler, engine: Any, workers: Sequence[DirectWorker], problems: Iterator[Prompted]) -> int:
    """Make the rollout of a step, and return how many samples came back."""

    def next_requests() -> Sequence[Request] | None:
        for worker in workers:
            worker.tick(TICK)
        return scheduler.next_requests()

    returned = 0
    scheduler.begin_step(problems)
    for segment in scheduled_rollout(engine, next_requests):
        sample = scheduler.end_segment(segment)
        returned += 1
        if sample.status is not Status.UNFINISHED:
            scheduler.experience.add(Scored(sample, 0.0, ""))
    return returned


def _seconds_of_a_collection() -> float:
    started = time.process_time()
    gc.collect()
    return round(time.process_time() - started, 3)
