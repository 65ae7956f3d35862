"""The loop over the steps of a run: rollout and update, evaluation, logs and checkpoints, and its early ends."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ulorl.algorithm import Step, ulorl_step
from ulorl.cancellation import Cancelled
from ulorl.config.tree import Config
from ulorl.engines.engine import Engine
from ulorl.error_codes import ErrorCode
from ulorl.errors import Diverged, UserError
from ulorl.evaluation.avg_at_k import evaluate
from ulorl.learner.behaviour import record_behaviour
from ulorl.learner.update_result import Skipped
from ulorl.rollout.length_bias import LengthBias
from ulorl.rollout.pool_io import Pools
from ulorl.runs.problem_counts import ProblemCounts
from ulorl.runs.run_log import RunLog, finite_metrics
from ulorl.training import checkpoint
from ulorl.training.build import Components
from ulorl.training.checkpoint import Boundary, CheckpointWriter, Counters
from ulorl.training.interrupts import Interrupted, Interrupts
from ulorl.training.measured_step import MeasuredStep, measured_step
from ulorl.training.overlapped_step import overlapped_step
from ulorl.training.specifications import evaluation_settings
from ulorl.training.step_metrics import count_step, evaluation_metrics, step_metrics
from ulorl.types import Metrics, Tokens


class Loop:
    """Trains from step `counters.step` + 1 to `config.steps`."""

    def __init__(
        self,
        components: Components,
        log: RunLog,
        writer: CheckpointWriter,
        interrupts: Interrupts,
        counters: Counters,
    ) -> None:
        self.components, self.log, self.writer, self.interrupts = components, log, writer, interrupts
        self.run_dir = Path(components.config.run.dir)
        self._last_skipped: Skipped | None = None
        self._problems = components.inputs.fingerprint
        self._bias = LengthBias(components.config.rollout.max_tokens, counters.length_bias)
        self._boundary = self._mark(counters.step, counters.pending)

    def run(self) -> None:
        """Make all steps.

        Raises Interrupted after a signal: the step or evaluation in progress is dropped and the boundary where it began
        is saved; a step that has changed the weights is finished first. Any other exception but Diverged saves the
        boundary too, if the weights are still those of the boundary, and is raised.
        """
        try:
            self._steps()
        except Cancelled:
            with suppress(Exception):  # it is closed next
                self.components.engine.abort()
            self._save_boundary()
            raise Interrupted(self.run_dir, self._boundary.counters.step, self.interrupts.received) from None
        except Diverged:
            raise
        except Exception:
            if self.components.learner.updates == self._boundary.updates:
                with suppress(Exception):  # the first error is the one to report
                    self._save_boundary()
            raise
        finally:
            self.components.inputs.scorer.drop()  # nobody waits for what a step submitted that has not ended

    def _steps(self) -> None:
        number, metrics = self._boundary.counters.step, self._boundary.counters.pending
        self.components.weight_check(self.components.engine, self.components.learner)
        self.interrupts.cancel.check()
        while True:
            if metrics is not None:
                self._finish_step(number, metrics)
            if number == self.components.config.steps:
                break
            self.interrupts.cancel.check()
            number += 1
            metrics = self._step(number)
        self.writer.wait()

    def _step(self, number: int) -> Metrics:
        """Make one step of Algorithm 1; its evaluation, log and checkpoint follow in `_finish_step`."""
        parts = self.components
        expected = parts.scheduler.schedule.expected_segments(len(parts.scheduler.unfinished))
        with self.log.phase("rollout", expected, tokens=lambda: parts.engine.stats.decode_tokens) as phase:
            make_step = partial(self._algorithm_step, number)
            measured = measured_step(make_step, parts.engine, parts.learner, parts.weight_check, phase.advance)
        self._warn(number, measured)
        with checkpoint.writing(self.run_dir):
            decode = partial(_decode, parts.inputs.tokenizer)
            self.log.samples(number, measured.step.groups, decode, measured.step.update)
            self.log.timeline(measured.timeline(number))
        return finite_metrics({**self._metrics(number, measured), **parts.inputs.scorer.metrics()})

    def _metrics(self, number: int, measured: MeasuredStep) -> Metrics:
        parts, cfg = self.components, self.components.config
        of_step = step_metrics(
            number, measured, parts.scheduler, parts.learner.version, slots=cfg.engine.slots, engines=cfg.engine_count
        )
        return of_step | count_step(self._bias, measured)

    def _algorithm_step(self, number: int, engine: Engine) -> Step:
        parts, cancel = self.components, self.interrupts.cancel
        if not parts.config.rollout.overlap:
            decoupled = parts.config.objective.importance == "decoupled"
            record = partial(record_behaviour, parts.learner) if decoupled else None
            return ulorl_step(parts.scheduler, engine, parts.inputs.scorer, parts.learner, parts.stream, cancel, record)
        late = (
            f"step {number}: its update has changed the weights already, so the step is finished before the run stops; "
            "a second signal ends the process at once"
        )
        return overlapped_step(
            parts.scheduler,
            engine,
            parts.inputs.scorer,
            parts.learner,
            parts.stream,
            cancel,
            on_late_cancel=lambda: self.log.print(late, style="yellow"),
        )

    def _warn(self, number: int, measured: MeasuredStep) -> None:
        """Print which mini-batches were skipped, and how many samples could not be scored."""
        for skipped in measured.step.update.skipped:
            self._last_skipped = skipped
            self.log.print(f"step {number}: a mini-batch was skipped: {skipped}", style="yellow")
        if unscored := [scored for scored in measured.step.finished if scored.reward is None]:
            why = f"{len(unscored)} samples could not be scored, the last because of {unscored[-1].error}"
            self.log.print(f"step {number}: {why}", style="yellow")

    def _finish_step(self, number: int, metrics: Metrics) -> None:
        """Evaluate and save when it is time to, and log the step. Raises Diverged when the losses diverge."""
        cfg, last = self.components.config, number == self.components.config.steps
        if self.components.inputs.held_out and (number == 0 or last or _is_due(number, cfg.eval.every)):
            self._boundary = self._mark(number, pending=metrics)
            metrics = metrics | self._evaluate(number)
        with checkpoint.writing(self.run_dir):
            self.log.step(metrics | self.writer.metrics())
        if self.components.learner.skipped_in_row >= cfg.optim.max_skipped:
            self.writer.wait()  # the message names the newest checkpoint
            raise diverged(cfg, number, self._last_skipped)
        self._boundary = self._mark(number)
        if last or (number and _is_due(number, cfg.run.checkpoint_every)):
            self.writer.save(self._boundary, self.components.learner)

    def _evaluate(self, number: int) -> Metrics:
        parts, settings, started = self.components, evaluation_settings(self.components.config), time.perf_counter()
        answers = len(parts.inputs.held_out) * settings.samples
        with self.log.phase("evaluate", answers, tokens=lambda: parts.engine.stats.decode_tokens) as phase:
            evaluation = evaluate(
                parts.engine,
                parts.inputs.scorer,
                parts.inputs.held_out,
                settings,
                on_answer=phase.advance,
                cancel=self.interrupts.cancel,
            )
        right, scored = zip(*evaluation.counts, strict=True)
        with checkpoint.writing(self.run_dir):
            ids = [problem.id for problem, _ in parts.inputs.held_out]
            self.log.evaluation(number, ProblemCounts(ids, right, scored))
        of_reward = {f"eval/{name}": value for name, value in parts.inputs.scorer.metrics().items()}
        return finite_metrics({**evaluation_metrics(evaluation, time.perf_counter() - started), **of_reward})

    def _mark(self, number: int, pending: Metrics | None = None) -> Boundary:
        """Return the present state of the run, `number` steps done, as a place to return to."""
        parts, logged = self.components, self.log.position
        counters = Counters(
            step=number,
            version=parts.learner.version,
            cursor=parts.stream.cursor,
            next_group=parts.scheduler.next_group,
            skipped_in_row=parts.learner.skipped_in_row,
            problems=self._problems,
            logged=logged.metrics,
            timeline=logged.timeline,
            length_bias=tuple(self._bias.state),
            pending=pending,
        )
        held = parts.scheduler
        pools = Pools(held.unfinished, held.experience, held.lengths).copy()
        return Boundary(counters, pools, parts.learner.updates)

    def _save_boundary(self) -> None:
        self.writer.save(self._boundary, self.components.learner)
        self.writer.wait()


def diverged(cfg: Config, step: int, last: Skipped | None) -> Diverged:
    """Return the error after `optim.max_skipped` skipped mini-batches in a row.

    Draws depend on the seed only, so resuming without a change would meet the same numbers: the command in the message
    lowers the learning rate, which may change on resume.
    """
    run_dir, advice = Path(cfg.run.dir), "start again with a lower optim.lr: there is no checkpoint yet"
    with suppress(UserError):
        newest = checkpoint.latest(run_dir)
        advice = f"return to {newest} with: {checkpoint.resume_command(run_dir)} optim.lr={cfg.optim.lr / 2:g}"
    if cfg.model.dtype == "bfloat16":
        advice = f"bfloat16 weights are often the cause (model.dtype=float32 with optim.autocast=bfloat16); or {advice}"
    because = f", the last because {last}" if last else ""
    return Diverged(
        f"{run_dir}, step {step}: {cfg.optim.max_skipped} mini-batches in a row were skipped (optim.max_skipped)"
        f"{because}. The weights did not change in them; {advice}",
        code=ErrorCode.LEARNER_DIVERGED,
        file=run_dir,
        key="optim.max_skipped",
    )


def _is_due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    """Decode tokens as `Scorer` decodes outputs."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
