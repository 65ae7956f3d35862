"""Measures the controller alone: scheduler, fleet and pools, with workers that need no time.

Every sample in flight is decoded for one segment a step; in the last of `SEGMENTS` steps the maximum length truncates
all of them, and all groups are released. The first step opens the groups. Prompt and segments are short, so that the
work for each sample is measured and not that for each token. The time of the workers, which make their segments in the
same thread, is subtracted. CPU seconds are measured, because other processes may share the cores; the controller waits
for nothing here. They include the last step's release of the memory of all samples. They do not include the full
garbage collection that Python makes outside of rollouts, about once a step; it is measured by itself, with all samples
in memory.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from ulorl.bench.direct_worker import DirectWorker
from ulorl.bench.machine_facts import facts
from ulorl.common.full_collections import no_full_collections
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.types import Problem, Sampling, Scored, Status

ENGINES = 256
SLOTS = 128
GROUP = 8
SEGMENTS = 4
SEGMENT_TOKENS = 16
PROMPT = 64
EOS, TOKEN, VOCABULARY = 0, 5, 1000


def run(samples: Sequence[int] = (10_000, 30_000, 100_000), engines: int = ENGINES) -> dict[str, Any]:
    """Measure a step with each number of samples in flight. Raises RuntimeError when a sample is lost."""
    about = facts()
    sizes = [_measure(number // GROUP, engines) for number in samples]
    return {"benchmark": "controller", **about, "engines": engines, "slots": SLOTS, "sizes": sizes}


def _measure(groups: int, engines: int) -> dict[str, Any]:
    """Return the seconds of each of the steps that a sample takes, with `groups` problems."""
    workers = [DirectWorker(TOKEN) for _ in range(engines)]
    fleet = EngineFleet(
        workers,
        remake=lambda _: DirectWorker(TOKEN),
        checks=SegmentChecks([EOS], VOCABULARY, Sampling()),
        settings=FleetSettings(slots=SLOTS, group=GROUP),
    )
    schedule = SegmentSchedule(prompts=groups, group=GROUP, tokens=SEGMENT_TOKENS)
    scheduler = Scheduler(schedule, max_tokens=SEGMENTS * SEGMENT_TOKENS, sampling=Sampling(), seed=0)
    prompt = np.ones(PROMPT, np.int32)
    new = [(Problem(str(number), "?"), prompt) for number in range(groups)]
    steps, released, collection = [], 0, 0.0
    with closing(fleet):
        for version in range(SEGMENTS):
            started, before = time.process_time(), sum(worker.seconds for worker in workers)
            with no_full_collections():
                scheduler.begin_step(new)
                for segment in scheduled_rollout(fleet, scheduler.next_requests):
                    sample = scheduler.end_segment(segment)
                    if sample.status is not Status.UNFINISHED:
                        scheduler.experience.add(Scored(sample, 0.0, ""))
            fleet.sleep()
            released += len(scheduler.release())
            fleet.load_weights([], version + 1)
            in_workers = sum(worker.seconds for worker in workers) - before
            steps.append(round(time.process_time() - started - in_workers, 3))
            new = []
            if version == SEGMENTS - 2:  # the last step releases all samples
                collection = _seconds_of_a_collection()
    if released != groups or len(scheduler.unfinished):
        raise RuntimeError(f"{groups - released} of {groups} groups were not released")
    samples = groups * GROUP
    return {
        "samples": samples,
        "cpu_seconds": steps,
        "collection_cpu_seconds": collection,
        "microseconds_a_sample": round(1e6 * sum(steps) / len(steps) / samples, 1),
    }


def _seconds_of_a_collection() -> float:
    started = time.process_time()
    gc.collect()
    return round(time.process_time() - started, 3)
