"""The metrics of a step, by the names that metrics.jsonl, TensorBoard and the report share. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ulorl.learner.age_names import AGE_MEANS, AGES
from ulorl.types import Group, Metrics, Sample, Status

if TYPE_CHECKING:
    from ulorl.evaluation.avg_at_k import Evaluation
    from ulorl.rollout.length_bias import LengthBias
    from ulorl.rollout.scheduler import Scheduler
    from ulorl.training.measured_step import MeasuredStep


def step_metrics(
    number: int, measured: MeasuredStep, scheduler: Scheduler, version: int, *, slots: int, engines: int = 1
) -> Metrics:
    """Return the metrics of a step, one line of metrics.jsonl. A mean over nothing is None.

    scheduler: as the step left it. version: of the weights after the step. slots: the samples that each of `engines`
    decodes at once.
    """
    step, work, mismatch = measured.step, measured.work, measured.weight_mismatch
    seconds = (measured.rollout_seconds, measured.reward_seconds, measured.update_seconds, measured.sync_seconds)
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
        "rollout/groups_open": len(scheduler.experience.open_groups),
        "rollout/groups_waiting": len(scheduler.experience.finished_groups),
        "entropy/finished": _drawn_entropy(finished),
        "rollout/decode_steps": work.decode_steps,
        "rollout/prefill_tokens": work.prefill_tokens,
        "rollout/tokens_per_second": decoded / measured.rollout_seconds,
        **_batch_metrics(step.groups, scheduler.schedule.prompts),
        "train/groups_dropped": step.update.groups_dropped,
        "train/groups_unscored": step.update.groups_unscored,
        "train/updates": step.update.steps,
        "train/skipped": len(step.update.skipped),
        "train/samples": step.update.samples,
        "train/tokens": step.update.tokens,
        **{name: step.update.means.get(name) for name in UPDATE_MEANS},
        "engine/occupancy": work.decode_tokens / (work.decode_steps * slots) if work.decode_steps else None,
        "engine/faults": work.faults,
        "engine/retried": work.retried,
        "mismatch/probe_mean": mismatch.mean if mismatch else None,
        "mismatch/probe_max": mismatch.max if mismatch else None,
        "time/rollout": measured.rollout_seconds,
        "time/reward": measured.reward_seconds,
        "time/update": measured.update_seconds,
        "time/sync": measured.sync_seconds,
        "time/step": sum(seconds),
        **({} if engines == 1 else {"time/engine_idle": work.idle_seconds / engines}),
    }


def _drawn_entropy(samples: Sequence[Sample]) -> float | None:
    """Return the mean of -log p over the samples' tokens, as recorded when they were drawn.

    It estimates the mean token entropy of the policies that drew them, in nats, without a forward pass, and without
    bias when tokens are drawn from the whole distribution (no top-p or top-k).
    """
    tokens = sum(map(len, samples))
    drawn = sum(float(segment.logprobs.sum(dtype=np.float64)) for sample in samples for segment in sample.segments)
    return -drawn / tokens if tokens else None


def _batch_metrics(groups: Sequence[Group], prompts: int) -> Metrics:
    """Return the metrics of the groups that a step trains. prompts: N."""
    trained = [scored.sample for group in groups for scored in group.members]
    versions = [sample.version_count for sample in trained]
    return {
        "train/groups": len(groups),
        "train/batch_growth": len(groups) / prompts,
        "train/length_mean": _mean([len(sample) for sample in trained]),
        "train/versions_mean": _mean(versions),
        "train/versions_max": max(versions, default=None),
    }


UPDATE_MEANS = (
    "rollout/staleness_mean",
    *AGES,
    *(f"{age}/{name}" for age in AGES for name in AGE_MEANS),
    "entropy/mean",
    "entropy/bonus",
    "entropy/chosen_fraction",
    "mpt/fraction",
    "mpt/masked_fraction",
    "mpt/entropy_share",
    "importance/ratio_mean",
    "importance/clip_fraction",
    "importance/tis_mean",
    "importance/rejected_fraction",
    "mismatch/mean",
    "mismatch/max",
    "mismatch/kl",
    "train/loss",
    "train/grad_norm",
    "train/lr",
)


def count_step(bias: LengthBias, measured: MeasuredStep) -> Metrics:
    """Count a step, and return the metric of the bias."""
    step = measured.step
    after = [len(sample) for sample in step.segments]
    bias.add(
        before=[n - len(sample.segments[-1]) for n, sample in zip(after, step.segments, strict=True)],
        after=after,
        complete=[sample.status is Status.COMPLETE for sample in step.segments],
        trained=[
            len(scored.sample)
            for group in step.groups
            for scored in group.members
            if scored.sample.id in step.update.advantages  # those of dropped and unscored groups are not trained
        ],
    )
    return {"train/length_bias": bias.ratio}


def evaluation_metrics(evaluation: Evaluation, seconds: float) -> Metrics:
    """Return the metrics of an evaluation that took `seconds`."""
    interval, summary = evaluation.interval, evaluation.summary
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
        "eval/pass_at_k": summary.pass_at.get(summary.samples),  # with k = eval/samples
        "eval/majority": summary.majority,
        "eval/repetitive": summary.repetitive,
        "eval/length_mean": summary.lengths.mean,
        "eval/length_p50": summary.lengths.p50,
        "eval/length_p90": summary.lengths.p90,
        "eval/length_p99": summary.lengths.p99,
        "eval/truncated": evaluation.truncated,
        "time/eval": seconds,
    }


def _mean(values: object) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else None
