"""The loop over the steps of a run: rollout and update, evaluation, logs and checkpoints, and how it is left early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ulorl.algorithm import Step, ulorl_step
from ulorl.cancellation import NEVER, Cancelled, CancelToken
from ulorl.common import atomic_files
from ulorl.config.tree import Config
from ulorl.data.problem_stream import ProblemStream
from ulorl.engines.engine import Engine
from ulorl.engines.guard import GuardedEngine
from ulorl.errors import Diverged, UserError
from ulorl.evaluation.evaluate import Evaluation, evaluate
from ulorl.learner.learner import Learner, Skipped
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.scheduler import Scheduler
from ulorl.runs.run_log import RunLog, finite_metrics
from ulorl.training import checkpoint
from ulorl.training.checkpoint import Boundary, Counters, Writer
from ulorl.training.interrupts import Interrupted, Interrupts
from ulorl.training.preflight import Inputs, Prompted
from ulorl.training.step_metrics import evaluation_metrics, step_metrics
from ulorl.training.weight_check import Probe
from ulorl.types import Metrics, Sampling, Tokens


@dataclass
class Rooms:
    """What `run.build` makes from a configuration."""

    config: Config
    inputs: Inputs
    stream: ProblemStream[Prompted]
    scheduler: Scheduler
    engine: GuardedEngine
    learner: Learner
    probe: Probe


class Loop:
    """Steps `counters.step` + 1 to `config.steps`. `before` and `after`: the evaluations made."""

    def __init__(self, rooms: Rooms, log: RunLog, writer: Writer, asked: Interrupts, counters: Counters) -> None:
        self.rooms, self.log, self.writer, self.asked = rooms, log, writer, asked
        self.run_dir = Path(rooms.config.run.dir)
        self.before: Evaluation | None = None
        self.after: Evaluation | None = None
        self._skipped: Skipped | None = None  # the last mini-batch that was
        self._problems = rooms.inputs.fingerprint
        self._boundary = self._mark(counters.step, counters.pending)
        rooms.engine.tell = partial(log.print, style="yellow")

    def run(self) -> None:
        """Raises Interrupted when a signal came: the step or evaluation in progress is given up, and the boundary where
        it began is saved. A step that has changed the weights already is finished first. Whatever else stops a step
        saves the same way."""
        try:
            self._steps()
        except Cancelled:
            with suppress(Exception):  # it is closed next
                self.rooms.engine.abort()
            self._save_boundary()
            raise Interrupted(self.run_dir, self._boundary.counters.step, self.asked.received) from None
        except Diverged:
            raise
        except Exception:
            if self._at_boundary:
                with suppress(Exception):  # the first error is the one to tell
                    self._save_boundary()
            raise

    def _steps(self) -> None:
        number, metrics = self._boundary.counters.step, self._boundary.counters.pending
        self.rooms.probe(self.rooms.engine, self.rooms.learner)
        self.asked.cancel.check()
        while True:
            if metrics is not None:
                self._conclude(number, metrics)
            if number == self.rooms.config.steps:
                break
            self.asked.cancel.check()
            number += 1
            metrics = self._step(number)
        self.writer.wait()

    def _step(self, number: int) -> Metrics:
        """One step of Algorithm 1, up to its evaluation."""
        rooms = self.rooms
        new = [rooms.stream.next() for _ in range(rooms.config.rollout.prompts)]
        entering = len(rooms.scheduler.unfinished) + len(new) * rooms.scheduler.group
        with self.log.phase("rollout", entering, tokens=lambda: rooms.engine.stats.decode_tokens) as phase:
            step: Step = ulorl_step(
                rooms.scheduler,
                rooms.engine,
                rooms.inputs.scorer,
                rooms.learner,
                new,
                watch=lambda _: phase.advance(),
                check=rooms.probe,
                cancel=self.asked.cancel,
            )
        for skipped in step.update.skipped:
            self._skipped = skipped
            self.log.print(f"step {number}: a mini-batch was skipped: {skipped}", style="yellow")
        if unscored := [scored for scored in step.finished if scored.reward is None]:
            why = f"{len(unscored)} samples could not be scored, the last because of {unscored[-1].error}"
            self.log.print(f"step {number}: {why}", style="yellow")
        with self._writing():
            self.log.samples(number, step.groups, partial(_decode, rooms.inputs.tokenizer))
        of_step = step_metrics(number, step, rooms.scheduler, rooms.learner.version)
        return finite_metrics({**of_step, **rooms.inputs.scorer.metrics()})

    def _conclude(self, number: int, metrics: Metrics) -> None:
        """Evaluate when it is time to, log, save when it is time to. Raises UserError when the losses diverge."""
        cfg, last = self.rooms.config, number == self.rooms.config.steps
        if self.rooms.inputs.held_out and (number == 0 or last or (cfg.eval.every and number % cfg.eval.every == 0)):
            self._boundary = self._mark(number, pending=metrics)
            evaluation, evaluated = self._evaluate()
            metrics = metrics | evaluated
            self.before, self.after = (evaluation, None) if number == 0 else (self.before, evaluation)
        with self._writing():
            self.log.step(metrics | self.writer.metrics())
        if self.rooms.learner.skipped_in_row >= cfg.optim.max_skipped:
            self.writer.wait()  # the message names the newest checkpoint
            raise diverged(cfg, number, self._skipped)
        self._boundary = self._mark(number)
        if last or (number and cfg.run.checkpoint_every and number % cfg.run.checkpoint_every == 0):
            self.writer.save(self._boundary, self.rooms.learner)

    def _evaluate(self) -> tuple[Evaluation, Metrics]:
        rooms, started = self.rooms, time.perf_counter()
        answers = len(rooms.inputs.held_out) * rooms.config.eval.samples
        with self.log.phase("evaluate", answers, tokens=lambda: rooms.engine.stats.decode_tokens) as phase:
            evaluation = run_evaluation(
                rooms.config, rooms.inputs, rooms.engine, watch=phase.advance, cancel=self.asked.cancel
            )
        of_reward = {f"eval/{name}": value for name, value in rooms.inputs.scorer.metrics().items()}
        return evaluation, finite_metrics(
            {**evaluation_metrics(evaluation, time.perf_counter() - started), **of_reward}
        )

    def _mark(self, number: int, pending: Metrics | None = None) -> Boundary:
        """The run as it is now, `number` steps done."""
        rooms = self.rooms
        counters = Counters(
            step=number,
            version=rooms.learner.version,
            cursor=rooms.stream.cursor,
            next_group=rooms.scheduler.next_group,
            skipped_in_row=rooms.learner.skipped_in_row,
            problems=self._problems,
            logged=self.log.position,
            pending=pending,
        )
        pools = Pools(rooms.scheduler.unfinished, rooms.scheduler.experience).copy()
        return Boundary(counters, pools, rooms.learner.optimizer.updates)

    @property
    def _at_boundary(self) -> bool:
        """Whether the weights are still those of the boundary where this step or evaluation began."""
        return self.rooms.learner.optimizer.updates == self._boundary.updates

    def _save_boundary(self) -> None:
        self.writer.save(self._boundary, self.rooms.learner)
        self.writer.wait()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with atomic_files.writing(self.run_dir, lambda: checkpoint.mend(self.run_dir)):
            yield


def run_evaluation(
    cfg: Config,
    inputs: Inputs,
    engine: Engine,
    watch: Callable[[], None] = lambda: None,
    cancel: CancelToken = NEVER,
) -> Evaluation:
    """avg@k of the engine's present weights on the held-out problems."""
    return evaluate(
        engine,
        inputs.scorer,
        inputs.held_out,
        samples=cfg.eval.samples,
        sampling=Sampling(cfg.eval.temperature, cfg.eval.top_p, cfg.eval.top_k),
        max_tokens=cfg.eval.max_tokens or cfg.rollout.max_tokens,
        seed=cfg.seed,
        watch=watch,
        cancel=cancel,
    )


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    """As `Scorer` decodes outputs."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def diverged(cfg: Config, step: int, last: Skipped | None) -> Diverged:
    """`optim.max_skipped` mini-batches in a row were skipped. Draws depend on the seed only, so resuming without a
    change would meet the same numbers: the command lowers the learning rate, which a resumed run may change."""
    run_dir, mend = Path(cfg.run.dir), "start again with a lower optim.lr: there is no checkpoint yet"
    with suppress(UserError):
        newest = checkpoint.latest(run_dir)
        mend = f"go back to {newest} with: ulorl train --resume {run_dir} optim.lr={cfg.optim.lr / 2:g}"
    if cfg.model.dtype == "bfloat16":
        mend = f"bfloat16 weights are often the cause (model.dtype=float32 with optim.autocast=bfloat16); or {mend}"
    because = f", the last because {last}" if last else ""
    return Diverged(
        f"{run_dir}, step {step}: {cfg.optim.max_skipped} mini-batches in a row were skipped (optim.max_skipped)"
        f"{because}. The weights did not change in them; {mend}"
    )
