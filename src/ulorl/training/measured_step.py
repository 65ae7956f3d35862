"""A step of Algorithm 1, measured from outside: the seconds of its phases, the work of the engine, its progress, and
whether engine and learner agree about the new weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ulorl.algorithm import Step
from ulorl.engines.engine import Engine, EngineStats, ManyEngines
from ulorl.engines.forwarding import ForwardingEngine
from ulorl.learner.learner import Learner
from ulorl.objective.mismatch import Mismatch
from ulorl.runs.timeline import DECODE_STEPS, MILLISECONDS, Span, timeline_entry
from ulorl.types import Segment

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class MeasuredStep:
    """A step and what was measured about it."""

    step: Step
    work: EngineStats  # of the rollout; the faults are those of the whole step
    spans: Mapping[int, Span]  # when each sample was decoded, by id
    many_engines: bool  # spans are in milliseconds then, and otherwise in decode steps
    weight_mismatch: Mismatch | None  # of engine and learner with the new weights; None when they did not change
    rollout_seconds: float  # to the last segment
    reward_seconds: float  # from there until every finished sample had its reward
    update_seconds: float  # from there; with overlap: until the update that runs meanwhile ends
    sync_seconds: float  # new weights into the engine, and their check

    def timeline(self, number: int) -> dict[str, Any]:
        """Return the line of this step, the `number`-th, for timeline.jsonl."""
        length, unit = self.work.decode_steps, DECODE_STEPS
        if self.many_engines:
            length, unit = round(1000 * self.rollout_seconds), MILLISECONDS
        return timeline_entry(number, self.step.segments, self.spans, length, unit)


def measured_step(
    make_step: Callable[[Engine], Step],
    engine: Engine,
    learner: Learner,
    weight_check: Callable[[Engine, Learner], Mismatch] | None = None,
    on_segment: Callable[[], None] = lambda: None,
) -> MeasuredStep:
    """Make one step of Algorithm 1 and measure it.

    make_step: makes the step with the engine that it is given (`ulorl_step`, `overlapped_step`). weight_check: is
    called when the weights have changed, and raises if the engine decodes with others. on_segment: is called for every
    segment that ends. Raises what the step raises.
    """
    recorder = _Recorder(engine, on_segment)
    step = make_step(recorder)
    updated = recorder.updated or time.perf_counter()
    mismatch = weight_check(engine, learner) if weight_check and step.update.steps else None
    return MeasuredStep(
        step=step,
        work=recorder.work.with_faults(engine.stats.since(recorder.before)),
        spans=recorder.spans,
        many_engines=recorder.many is not None,
        weight_mismatch=mismatch,
        rollout_seconds=recorder.rolled_out - recorder.started,
        reward_seconds=recorder.judged - recorder.rolled_out,
        update_seconds=updated - recorder.judged,
        sync_seconds=time.perf_counter() - updated,
    )


class _Recorder(ForwardingEngine):
    """Records when segments are decoded, and when the phases of a step end: the rollout with its last segment, its
    rewards before `sleep`, the update before `load_weights`."""

    def __init__(self, engine: Engine, on_segment: Callable[[], None]) -> None:
        super().__init__(engine)
        self._on_segment = on_segment
        self.before, self.work = replace(engine.stats), EngineStats()
        self.started = self.rolled_out = self.judged = time.perf_counter()
        self.updated = 0.0  # 0: no new weights
        self.many = engine if isinstance(engine, ManyEngines) else None
        self.spans: dict[int, Span] = {}

    def step(self) -> list[Segment]:
        segments = self._seen(super().step())
        for _ in segments:
            self._on_segment()
        return segments

    def abort(self) -> list[Segment]:
        return self._seen(super().abort())

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.updated = time.perf_counter()
        super().load_weights(weights, version)

    def sleep(self) -> None:
        self.judged, self.work = time.perf_counter(), self.stats.since(self.before)
        if not self.spans:  # no segment ended in this step
            self.rolled_out = self.judged
        super().sleep()

    def _seen(self, segments: list[Segment]) -> list[Segment]:
        """Record the spans of segments that just ended. One engine decodes a token of every active row in each step; of
        several, each has its own steps, so that seconds are all that they share."""
        if segments:
            self.rolled_out = time.perf_counter()
        if self.many is None:
            end = self.stats.decode_steps - self.before.decode_steps
            self.spans |= {one.sample_id: Span(end - len(one), end) for one in segments}
            return segments
        for one in (one for one in segments if one.sample_id in self.many.given):
            engine, start = self.many.given[one.sample_id]
            self.spans[one.sample_id] = Span(self._milliseconds(start), self._milliseconds(self.rolled_out), engine)
        return segments

    def _milliseconds(self, moment: float) -> int:
        return round(1000 * (moment - self.started))
