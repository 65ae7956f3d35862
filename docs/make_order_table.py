"""Prints the table of docs/schedule_results.md, "Order of admission": `python docs/make_order_table.py`, minutes.

The scheduler of training rolls out over a scripted engine, so lengths, slots and order decide alone. Lengths are
log-normal, alike within a problem. What counts is decode steps: a decode step takes as long with every number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product

import numpy as np

from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.scripted import ScriptedEngine
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import Order, OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Problem, Sampling, Scored, Status

PROMPTS, GROUP, LIMIT, EOS = 32, 8, 2000, 0
MEDIAN, SIGMA, CORRELATION = 130, 1.0, 0.4  # of log lengths; correlation: of siblings
WARM, STEPS, SEEDS = 8, 16, (0, 1)
PROBLEMS = {"first visits": 10**6, "later visits": 128}
SCHEDULES: dict[str, Callable[[Order], Schedule]] = {
    "one segment": lambda order: SegmentSchedule(prompts=PROMPTS, group=GROUP, order=order, tokens=LIMIT),
    "4 segments": lambda order: SegmentSchedule(prompts=PROMPTS, group=GROUP, order=order, tokens=LIMIT // 4),
    "oversubscribe 1.5": lambda order: OversubscribeSchedule(prompts=PROMPTS, group=GROUP, order=order, factor=1.5),
    "refill 1": lambda order: RefillSchedule(prompts=PROMPTS, group=GROUP, order=order, factor=1),
}


@dataclass(frozen=True)
class Lengths:
    """Output lengths of samples, by id; problems come in turn."""

    problems: int
    seed: int

    def problem(self, group: int) -> int:
        return group % self.problems

    def __call__(self, sample: int) -> int:
        problem = np.random.default_rng((self.seed, 0, self.problem(sample // GROUP))).standard_normal()
        own = np.random.default_rng((self.seed, 1, sample)).standard_normal()
        z = math.sqrt(CORRELATION) * problem + math.sqrt(1 - CORRELATION) * own
        return min(math.ceil(MEDIAN * math.exp(SIGMA * z)), LIMIT)


def rate(schedule: Schedule, slots: int, lengths: Lengths) -> float:
    """Return the trained tokens a decode step and slot, after `WARM` steps."""
    engine = ScriptedEngine(lambda id: _script(lengths(id)), EOS, slots=slots)
    scheduler = Scheduler(schedule, max_tokens=LIMIT, sampling=Sampling(), seed=0, slots=slots)
    prompt, groups, trained, begun = np.ones(1, np.int32), count(), 0, 0
    problems = ((Problem(str(lengths.problem(group)), "?"), prompt) for group in groups)
    for step in range(WARM + STEPS):
        if step == WARM:
            trained, begun = 0, engine.stats.decode_steps
        scheduler.begin_step(problems)
        for segment in scheduled_rollout(engine, scheduler.next_requests):
            sample = scheduler.end_segment(segment)
            if sample.status is not Status.UNFINISHED:
                scheduler.experience.add(Scored(sample, 0.0, ""))
        trained += sum(len(member.sample) for group in scheduler.release() for member in group.members)
        engine.load_weights((), version=step + 1)
    return trained / (engine.stats.decode_steps - begun) / slots


def _script(length: int) -> list[int]:
    return [1] * (length - 1) + [EOS]


def table() -> str:
    """Return the table in Markdown."""
    shares = {f"{slots} slots": slots for slots in (32, 64, 128)}
    lines = ["| schedule | " + " | ".join(f"{visits}, {name}" for visits, name in product(PROBLEMS, shares)) + " |"]
    lines.append("|---" * (1 + len(PROBLEMS) * len(shares)) + "|")
    for name, make in SCHEDULES.items():
        cells = []
        for problems, slots in product(PROBLEMS.values(), shares.values()):
            lengths = [Lengths(problems, seed) for seed in SEEDS]
            fifo, longest = (sum(rate(make(order), slots, one) for one in lengths) for order in ("fifo", "longest"))
            cells.append(f"{longest / fifo:.2f} ({fifo / len(SEEDS):.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
