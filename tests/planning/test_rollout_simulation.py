"""The simulation against the engines that it stands for: step by step, the same decode steps, prefill and groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, repeat
from math import inf

import numpy as np
import pytest

from small_models import make
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.engine import Engine
from ulorl.engines.scripted import ScriptedEngine
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.planning.decode_times import decode_times
from ulorl.planning.group_lengths import DrawnLengths, log_normal_lengths
from ulorl.planning.latency_profile import SOURCED, DecodeTable, LatencyProfile, TokenTable, linear_decode
from ulorl.planning.rollout_simulation import RolloutSimulation, Setting
from ulorl.planning.simulated_engine import Row, SimulatedEngine
from ulorl.planning.simulated_step import SimulatedStep
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import OversubscribeSchedule, RefillSchedule, Schedule, SegmentSchedule
from ulorl.types import Problem, Prompted, Sampling, Scored, Status

EOS, STEPS = 2, 6


def profile(*, slots: int, engines: int = 1, kv_tokens: int = 0, sync: float = 0.0) -> LatencyProfile:
    """10 ms a step, .1 ms a row, 1 us a KV token; .1 ms a prefill token; 1 us a trained token."""
    return LatencyProfile(
        name="test",
        decode=linear_decode(10e-3, 1e-4, 1e-6, rows=64, context=4096),
        prefill=TokenTable(tokens=(1,), seconds=(1e-4,)),
        learner=TokenTable(tokens=(1,), seconds=(1e-6,)),
        sync_seconds=sync,
        slots=slots,
        engines=engines,
        kv_tokens=kv_tokens,
        sources=dict.fromkeys(SOURCED, "assumption"),
    )


def simulate(
    schedule: Schedule,
    lengths: Sequence[int] | Callable[[int], Sequence[int]],
    machine: LatencyProfile,
    *,
    max_tokens: int,
    prompt: int = 1,
    steps: int = STEPS,
) -> list[SimulatedStep]:
    size = schedule.group
    of_group = lengths if callable(lengths) else lambda id: lengths[id * size : (id + 1) * size]
    return [*RolloutSimulation(schedule, Setting(machine, max_tokens, prompt, of_group)).steps(steps)]


@dataclass(frozen=True)
class RealStep:
    decode_steps: int
    decode_tokens: int
    prefill_tokens: int
    groups: int
    tokens: int
    staleness: int


class RealRun:
    """Steps of the scheduler and an engine, whose weights stay the same, with a version more after every update."""

    def __init__(
        self, schedule: Schedule, engine: Engine, slots: int, max_tokens: int, prompts: Iterable[np.ndarray]
    ) -> None:
        self.scheduler = Scheduler(schedule, max_tokens=max_tokens, sampling=Sampling(), seed=3, slots=slots)
        self.engine, self.version = engine, 0
        self.problems: Iterator[Prompted] = ((Problem(str(i), "?"), prompt) for i, prompt in enumerate(prompts))
        self.lengths: dict[int, int] = {}

    def step(self) -> RealStep:
        stats, scheduler = self.engine.stats, self.scheduler
        before = stats.decode_steps, stats.decode_tokens, stats.prefill_tokens
        scheduler.begin_step(self.problems)
        for segment in scheduled_rollout(self.engine, scheduler.next_requests):
            sample = scheduler.end_segment(segment)
            if len(segment) and sample.status is not Status.UNFINISHED:
                self.lengths[sample.id] = len(sample)
                scheduler.experience.add(Scored(sample, 1.0, ""))
        groups = scheduler.release()
        samples = [member.sample for group in groups for member in group.members]
        ages = [self.version - int(version) for s in samples for part in s.segments for version in part.versions]
        self.version += bool(groups)
        self.engine.version = self.version  # type: ignore[misc] - the weights stay the same
        after = stats.decode_steps, stats.decode_tokens, stats.prefill_tokens
        spent = [b - a for a, b in zip(before, after, strict=True)]
        return RealStep(*spent, len(groups), sum(map(len, samples)), sum(ages))

    def finish(self) -> list[int]:
        """Decode what is unfinished to its end; return the lengths of all samples."""
        self.problems = iter(())
        while self.scheduler.unfinished:
            self.step()
        return [self.lengths[id] for id in range(len(self.lengths))]


def planned(step: SimulatedStep) -> RealStep:
    (engine,) = step.engines
    spent = engine.decode_steps, engine.decode_tokens, engine.prefill_tokens
    return RealStep(*spent, step.groups, step.trained.tokens, step.age_tokens)


def schedules(prompts: int, group: int, max_tokens: int) -> list[Schedule]:
    size = {"prompts": prompts, "group": group}
    return [
        SegmentSchedule(**size, tokens=max_tokens),
        SegmentSchedule(**size, tokens=max_tokens // 3),
        SegmentSchedule(**size, tokens=max_tokens // 4, max_versions=2),
        OversubscribeSchedule(**size, factor=2.0),
        OversubscribeSchedule(**size, factor=1.5, max_versions=3, window=2 * prompts),
        RefillSchedule(**size, factor=1.3),
        RefillSchedule(**size, factor=2.0, window=prompts, order="longest"),
        RefillSchedule(**size, factor=1.0, batch_tokens=prompts * group * max_tokens // 3),
    ]


@pytest.mark.parametrize("slots", [1, 4, 100])
@pytest.mark.parametrize("number", range(8))
def test_decode_steps_are_those_of_scripted_outputs(number: int, slots: int) -> None:
    prompts, group, max_tokens = 3, 2, 12
    for seed in range(5):
        schedule = schedules(prompts, group, max_tokens)[number]
        lengths = np.random.default_rng(seed).integers(1, max_tokens + 4, 1000).tolist()
        engine = ScriptedEngine({id: [9] * (n - 1) + [EOS] for id, n in enumerate(lengths)}, EOS, slots=slots)
        run = RealRun(schedule, engine, slots, max_tokens, repeat(np.array([5], np.int32)))
        real = [replace(run.step(), prefill_tokens=0) for _ in range(STEPS)]
        found = simulate(schedule, lengths, profile(slots=slots), max_tokens=max_tokens)
        assert [replace(planned(step), prefill_tokens=0) for step in found] == real


@pytest.mark.parametrize(("number", "slots"), [*((number, 6) for number in range(8)), (1, 64), (5, 64)])
def test_decode_steps_and_prefill_tokens_are_those_of_the_embedded_engine(number: int, slots: int) -> None:
    prompts, group, max_tokens, prompt = 3, 3, 16, 7
    schedule = schedules(prompts, group, max_tokens)[number]
    engine = TorchEngine(make("Qwen3"), eos_ids=[*range(2, 8)], slots=slots, prefill_tokens=64)
    draws = np.random.default_rng(0)
    prompt_of_problem = (draws.integers(8, 97, prompt, dtype=np.int32) for _ in count())
    run = RealRun(schedule, engine, slots, max_tokens, prompt_of_problem)
    real = [run.step() for _ in range(STEPS)]
    found = simulate(schedule, run.finish(), profile(slots=slots), max_tokens=max_tokens, prompt=prompt)
    assert [planned(step) for step in found] == real


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_refill_gives_a_sample_one_version_and_a_factor_more(factor: float) -> None:
    """Little's law: what is in flight at the end of a step is what enters in a step, times the ends that it sees."""
    schedule = RefillSchedule(prompts=16, group=4, factor=factor)
    lengths = DrawnLengths(log_normal_lengths(300, 1000, 1500, correlation=0.5), seed=0, group=4)
    steps = simulate(schedule, lengths, profile(slots=128, engines=2), max_tokens=1500, steps=70)[20:]
    versions, samples = (sum(getattr(s.trained, name) for s in steps) for name in ("versions", "samples"))
    assert samples == 50 * 16 * 4
    assert versions / samples == pytest.approx(1 + factor, rel=0.03)
    again = simulate(schedule, lengths, profile(slots=128, engines=2), max_tokens=1500, steps=70)[20:]
    assert steps == again


def test_a_step_ends_when_every_engine_has_finished_its_decode_step() -> None:
    """1 s a decode step with one row, 1.5 s with two. Engine 0 has samples 0 and 2, and sample 0 ends after 3 steps, at
    4.5 s; engine 1 is in its fifth step, until 5 s. The update takes 3 us and the weight sync 2 s."""
    machine = profile(slots=2, engines=2, sync=2.0).model_copy(
        update={
            "decode": linear_decode(0.5, 0.5, 0.0, rows=2, context=10),
            "prefill": TokenTable(tokens=(1,), seconds=(0.0,)),
        }
    )
    schedule = OversubscribeSchedule(prompts=1, group=1, factor=3.0)
    first, second = simulate(schedule, [3, 100, 10, 1, 9, 9], machine, max_tokens=1000, steps=2)
    assert first.seconds == pytest.approx(5 + 3e-6 + 2)
    assert [(e.decode_steps, e.decode_tokens) for e in first.engines] == [(3, 6), (5, 5)]
    # samples 1 and 2 are carried; 3 is new, has the most expected tokens, and is dealt first; 1 second later it ends
    assert (second.groups, second.trained.tokens, second.carried) == (1, 1, 2)
    assert second.trained.version_tokens == 1


@pytest.mark.parametrize("entering", [2.5, 3.0])
def test_a_request_enters_after_the_decode_step_in_progress(entering: float) -> None:
    """1 s a decode step with one row, 1.5 s with two, .1 s a prefilled token. The second row enters at 3 s, its 3
    tokens but the last take .2 s, and the first row's last 2 tokens 3 s."""
    machine = profile(slots=2).model_copy(
        update={
            "decode": linear_decode(0.5, 0.5, 0.0, rows=2, context=10),
            "prefill": TokenTable(tokens=(1,), seconds=(0.1,)),
        }
    )
    engine = SimulatedEngine(machine, partial(decode_times, machine.decode))
    engine.add(Row(0, 0, 1, 0, 100, 0, draws=5))
    assert engine.schedule(0.0) == pytest.approx(5)
    engine.add(Row(1, 1, 3, 0, 100, 0, draws=9))
    assert engine.schedule(entering) == pytest.approx(3)
    assert engine.advance() == []
    assert engine.schedule(3.0) == pytest.approx(6.2)
    assert [row.sample_id for row in engine.advance()] == [0]
    assert [(row.sample_id, row.drawn) for row in engine.abort(6.2)] == [(1, 2)]


def test_rows_decode_as_fast_as_their_lengths_are_alike() -> None:
    """1 s a decode step of two rows that are equally long, 2 s with lengths from 0 to twice the mean.

    Rows of 12 and 4 tokens: mean 8, deviation 4, that of lengths from 0 to 16 is 8 / sqrt(3): 4 sqrt(3) / 8 = .87, to
    eighths 7/8. Their first 4 steps take 1 + 7/8 s each. With 16 and 8 tokens, the deviation is 4 of a mean of 12: .58,
    to eighths 5/8.
    """
    table = DecodeTable(rows=(1, 2), contexts=(1, 100), seconds=((1, 1), (2, 2)), alike=((1, 1), (1, 1)))
    machine = profile(slots=2).model_copy(update={"decode": table, "prefill": TokenTable(tokens=(1,), seconds=(0,))})
    engine = SimulatedEngine(machine, partial(decode_times, table))
    engine.add(Row(0, 0, 12, 0, 100, 0, draws=9))
    engine.add(Row(1, 1, 4, 0, 100, 0, draws=4))
    assert engine.schedule(0.0) == pytest.approx(4 * (1 + 7 / 8))
    assert [row.sample_id for row in engine.advance()] == [1]
    engine.add(Row(2, 2, 8, 0, 100, 0, draws=2))
    assert engine.schedule(engine.time) == pytest.approx(4 * (1 + 7 / 8) + 2 * (1 + 5 / 8))
    assert [row.sample_id for row in engine.advance()] == [2]
    assert engine.schedule(engine.time) == pytest.approx(4 * (1 + 7 / 8) + 2 * (1 + 5 / 8) + 3)


def padding_engine(slots: int, *, step: float = 0.0, entry: float = 0.0, copy: float = 0.0) -> SimulatedEngine:
    """An engine that pads, with seconds of a decode step, of an entry read in it and of a copied token."""
    machine = profile(slots=slots).model_copy(
        update={
            "decode": linear_decode(step, 0.0, entry, rows=4, context=1000),
            "prefill": TokenTable(tokens=(1,), seconds=(0.0,)),
            "prefill_padding": 128,
            "copy_seconds": copy,
        }
    )
    return SimulatedEngine(machine, partial(decode_times, machine.decode))


def test_a_row_in_the_place_of_a_longer_one_is_as_expensive_until_rows_are_sorted() -> None:
    """A step takes 1 s and 1 ms an entry. Rows of 70, 60, 10 and 10 tokens: that of 70 ends after the first step, of
    150 entries. The newest takes its place, so the others, of 61, 11 and 11 tokens, read 60 entries more: 30 steps
    take 30 + .143 x 30 + .003 x (0 + ... + 29) s. Then the one that had 60 ends, and the newest, of 41 tokens, takes
    its place: with 50 more, the last two read 82 + 110. After step 32, rows are sorted, as 110 are more than a tenth.
    So with one of 10 tokens that enters then, they read 42 + 42 + 10 and three more. A row that is left alone reads
    what it has: 44."""
    engine = padding_engine(slots=4, step=1.0, entry=1e-3)
    for sample, (tokens, draws) in enumerate(((70, 1), (60, 31), (10, 34), (10, 40))):
        engine.add(Row(sample, sample, tokens, 0, 100, 0, draws=draws))
    assert engine.schedule(0.0) == pytest.approx(1.150)
    assert [row.sample_id for row in engine.advance()] == [0]
    assert engine.schedule(engine.time) - engine.time == pytest.approx(30 + 0.143 * 30 + 0.003 * sum(range(30)))
    assert [row.sample_id for row in engine.advance()] == [1]
    start = engine.time
    assert engine.schedule(start) - start == pytest.approx(3 + 0.192 * 3 + 0.002 * sum(range(3)))
    engine.add(Row(4, 4, 10, 0, 100, 0, draws=2))
    assert engine.schedule(start + 0.5) - start == pytest.approx(1.192)
    assert engine.advance() == []
    assert engine.schedule(engine.time) - engine.time == pytest.approx(2 + 0.094 + 0.097)
    assert [row.sample_id for row in engine.advance()] == [2, 4]
    assert engine.schedule(engine.time) - engine.time == pytest.approx(6 + 0.044 * 6 + 0.001 * sum(range(6)))


def test_siblings_that_enter_together_and_rows_that_are_sorted_are_copied() -> None:
    """A step takes 1 s, and a copied token 1 ms. The second sibling's first 9 tokens are copied. Row 0, of 100 tokens,
    ends after the first step, and row 2 takes its place: 101 - 11 entries more than 22. The next
    event is after step 34, 2 after the engine sorts: then the simulation counts the 2 x 44 tokens as copied."""
    engine = padding_engine(slots=3, step=1.0, copy=1e-3)
    for sample, (tokens, draws) in enumerate(((100, 1), (10, 34), (10, 34))):
        engine.add(Row(sample, min(sample, 1), tokens, 0, 100, 0, draws=draws))
    assert engine.schedule(0.0) == pytest.approx(0.009 + 1)
    engine.advance()
    engine.schedule(engine.time)
    engine.schedule(30.5)  # a step that ends with nothing
    assert [row.sample_id for row in engine.advance()] == [1, 2]
    assert engine.time == pytest.approx(0.009 + 34 + 0.001 * 2 * 44)


def test_no_row_moves_when_the_last_one_ends_and_places_are_those_after_earlier_moves() -> None:
    """A step takes 1 ms an entry. Rows of 50, 40, 20 and 5 tokens: when the last ends, nothing moves, and the others
    read 51 + 41 + 21. When the first ends, that of 22 takes its place and reads 52. When that of 43 ends, which is the
    last now, nothing moves, and the row that is left alone reads what it has: 23 to 28 in its last 6 steps."""
    engine = padding_engine(slots=4, entry=1e-3)
    for sample, (tokens, draws) in enumerate(((50, 2), (40, 3), (20, 9), (5, 1))):
        engine.add(Row(sample, sample, tokens, 0, 100, 0, draws=draws))
    assert engine.schedule(0.0) == pytest.approx(0.115)
    for ended, seconds in ((3, 0.051 + 0.041 + 0.021), (0, 0.042 + 0.052)):
        assert [row.sample_id for row in engine.advance()] == [ended]
        assert engine.schedule(engine.time) - engine.time == pytest.approx(seconds)
    assert [row.sample_id for row in engine.advance()] == [1]
    assert engine.schedule(engine.time) - engine.time == pytest.approx(0.153)


def test_the_newest_row_is_computed_again_when_keys_and_values_are_full() -> None:
    """Two rows with 3 + 3 tokens and 2 more a step: 12 do not fit into 10 before the fourth step. The second leaves
    with 3 of its 5 tokens, and enters when the first has drawn its last 2: 3 + 2 + 2 steps, and 3 + 3 - 1 tokens that
    were computed before."""
    engine = SimulatedEngine(profile(slots=2, kv_tokens=10), partial(decode_times, profile(slots=2).decode))
    for sample in range(2):
        engine.add(Row(sample, sample, 3, 0, 100, 0, draws=5))
    ended, time = [], 0.0
    while (time := engine.schedule(time)) < inf:
        ended += [row.sample_id for row in engine.advance()]
    assert ended == [0, 1]
    figures = engine.figures
    assert (figures.decode_steps, figures.decode_tokens, figures.preemptions) == (7, 10, 1)
    assert (figures.prefill_tokens, figures.again_tokens, figures.context_peak) == (2 + 2 + 5, 5, 10)
