"""The metrics of a step, by the names that metrics.jsonl, TensorBoard and the report share. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ulorl.types import Metrics, Status

if TYPE_CHECKING:
    from ulorl.evaluation.avg_at_k import Evaluation
    from ulorl.rollout.scheduler import Scheduler
    from ulorl.training.measured_step import MeasuredStep


def step_metrics(number: int, measured: MeasuredStep, scheduler: Scheduler, version: int) -> Metrics:
    """Return the metrics of a step, one line of metrics.jsonl. A mean over nothing is None.

    scheduler: as the step left it. version: of the weights after the step.
    """
    step, work, mismatch = measured.step, measured.work, measured.weight_mismatch
    seconds = (measured.rollout_seconds, measured.update_seconds, measured.sync_seconds)
    finished = [scored.sample for scored in step.finished]
    decoded = sum(len(sample.segments[-1]) for sample in step.segments)
    return {
        "step": number,
        "version": version,
        "reward/mean": _mean([scored.reward for scored in step.finished if scored.reward is not None]),
        "reward/unscored": sum(scored.reward is None for scored in step.finished),
        "reward/no_answer": sum(scored.answer is None for scored in step.finished),
        "rollout/tokens": decoded,
        "rollout/in_flight": len(step.segments),
        "rollout/finished": len(finished),
        "rollout/carried": len(scheduler.unfinished),
        "rollout/waiting": len(scheduler.experience),
        **({} if step.released is None else {"rollout/released": len(step.released)}),
        "rollout/truncated": sum(sample.status is Status.TRUNCATED for sample in finished),
        "rollout/length_mean": _mean([len(sample) for sample in finished]),
        "rollout/segments_mean": _mean([len(sample.segments) for sample in finished]),
        "rollout/multi_segment_fraction": _mean([len(sample.segments) > 1 for sample in finished]),
        "rollout/decode_steps": work.decode_steps,
        "rollout/prefill_tokens": work.prefill_tokens,
        "rollout/tokens_per_second": decoded / measured.rollout_seconds,
        "train/groups": len(step.groups),
        "train/groups_dropped": step.update.groups_dropped,
        "train/groups_unscored": step.update.groups_unscored,
        "train/updates": step.update.steps,
        "train/skipped": len(step.update.skipped),
        "train/samples": step.update.samples,
        "train/tokens": step.update.tokens,
        **{name: step.update.means.get(name) for name in UPDATE_MEANS},
        "engine/faults": work.faults,
        "engine/retried": work.retried,
        "mismatch/probe_mean": mismatch.mean if mismatch else None,
        "mismatch/probe_max": mismatch.max if mismatch else None,
        "time/rollout": measured.rollout_seconds,
        "time/update": measured.update_seconds,
        "time/sync": measured.sync_seconds,
        "time/step": sum(seconds),
    }


UPDATE_MEANS = (
    "rollout/staleness_mean",
    "entropy/mean",
    "mpt/fraction",
    "mpt/masked_fraction",
    "importance/ratio_mean",
    "importance/clip_fraction",
    "importance/tis_mean",
    "mismatch/mean",
    "mismatch/max",
    "mismatch/kl",
    "train/loss",
    "train/grad_norm",
    "train/lr",
)


def evaluation_metrics(evaluation: Evaluation, seconds: float) -> Metrics:
    """Return the metrics of an evaluation that took `seconds`."""
    interval = evaluation.interval
    return {
        "eval/accuracy": interval.value if interval else None,
        "eval/accuracy_low": interval.low if interval else None,
        "eval/accuracy_high": interval.high if interval else None,
        "eval/stderr": evaluation.stderr if len(evaluation.shares) > 1 else None,
        "eval/problems": len(evaluation.by_problem),
        "eval/samples": evaluation.samples,
        "eval/unscored": evaluation.unscored,
        "eval/no_answer": evaluation.no_answer,
        "eval/engine_faults": evaluation.faults,
        "eval/length_mean": evaluation.mean_length,
        "eval/truncated": evaluation.truncated,
        "time/eval": seconds,
    }


def _mean(values: object) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else None
