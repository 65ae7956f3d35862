"""Starts, resumes and finishes runs, and evaluates a model without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from ulorl.backends import torchrun
from ulorl.common import atomic_files
from ulorl.config.loading import load_saved, with_overrides
from ulorl.config.model_config import LoraConfig
from ulorl.config.resumable_keys import resumable_keys
from ulorl.config.tree import Config
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.avg_at_k import Evaluation, evaluate
from ulorl.learner.learner import LearnerLost
from ulorl.report.html_report import write_report
from ulorl.runs import run_folder
from ulorl.runs.run_log import RunLog
from ulorl.runs.saved_run import read_run
from ulorl.runs.summary import HeldOutAccuracy, accuracies
from ulorl.runs.terminal_lines import print_line
from ulorl.training import checkpoint
from ulorl.training.build import Components, build, evaluation_engine, opened_backend, set_threads
from ulorl.training.checkpoint import CheckpointWriter, Counters
from ulorl.training.interrupts import Interrupted, catching_signals
from ulorl.training.learner_restarts import LearnerRestarts, beginning, continuation
from ulorl.training.loop import Loop
from ulorl.training.preflight import load_evaluation, load_inputs
from ulorl.training.problem_fingerprint import changed_problems, remedy
from ulorl.training.specifications import evaluation_settings
from ulorl.types import Metrics

MODEL = "model"  # the folder of the trained model in the run's folder


@dataclass(frozen=True)
class Result:
    """A finished run. What it measured is read from its folder, so a run that was stopped and resumed has it too."""

    dir: Path
    model: Path  # a transformers folder

    @property
    def before(self) -> HeldOutAccuracy | None:
        """The evaluation before training; None without one."""
        return next((one for one in self._evaluations if one.step == 0), None)

    @property
    def after(self) -> HeldOutAccuracy | None:
        """The latest evaluation, after the last step; None without one."""
        return next((one for one in reversed(self._evaluations) if one.step), None)

    @property
    def metrics(self) -> list[Metrics]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    @property
    def _evaluations(self) -> list[HeldOutAccuracy]:
        return accuracies(read_run(self.dir))


def train(cfg: Config, *, overwrite: bool = False) -> Result:
    """Train a new run, or resume the run in `run.dir` when it is this one and unfinished.

    In a process that torchrun started as another rank than 0, this shares the learner of rank 0 until its run ends.
    Raises UserError for anything wrong with recipe, data or model folder, before the model is loaded; and when
    `run.dir` holds a finished run, another run (`overwrite` replaces it), or anything else.
    """
    run_dir = Path(cfg.run.dir)
    if torchrun.is_worker():
        return _serve(run_dir)
    if overwrite or not run_folder.holds_run(run_dir):
        run_folder.check_free(cfg)
    with run_folder.locked(run_dir):
        if overwrite or not run_folder.holds_run(run_dir):
            return _start(cfg)
        folder = checkpoint.newest(run_dir)  # before config.json, whose keys another version may have named otherwise
        changed = run_folder.changes(cfg)
        _check_unfinished(cfg, folder)
        if not folder:
            return _start(cfg, f"{run_dir} holds this run without a checkpoint yet: it starts again")
        new = f" with {run_folder.changes_text(changed)}" if changed else ""
        return _resume(cfg, folder, f"{run_dir} holds this run, unfinished (--overwrite starts again). It resumes{new}")


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Result:
    """Resume a run from its newest checkpoint, as if it had never stopped; without a checkpoint, start it again.

    Raises UserError when there is no run, or when an override changes a setting that a run must keep.
    """
    if torchrun.is_worker():
        return _serve(run_dir)
    if not run_folder.holds_run(run_dir):
        load_saved(run_dir / run_folder.CONFIG)  # says what is wrong with it
        raise UserError(f"{run_dir} is not the folder of a run", code=ErrorCode.RUN_NOT_FOUND, file=run_dir)
    with run_folder.locked(run_dir):
        folder = checkpoint.newest(run_dir)
        saved = load_saved(run_dir / run_folder.CONFIG)
        moved = saved.model_copy(update={"run": saved.run.model_copy(update={"dir": str(run_dir)})})
        cfg = with_overrides(moved, overrides, allowed=resumable_keys(), purpose="a resumed run")
        _check_unfinished(cfg, folder)
        if folder:
            return _resume(cfg, folder, f"{run_dir} resumes")
        return _start(cfg, f"{run_dir} has no checkpoint yet: it starts again")


def _serve(run_dir: Path) -> Result:
    """Share the learner of the process that torchrun started as rank 0, until its run ends."""
    torchrun.serve()
    return Result(run_dir, run_dir / MODEL)


def evaluate_config(cfg: Config) -> Evaluation:
    """Measure avg@k of `model.path` on the held-out problems of a configuration, without training.

    Raises UserError."""
    merged = cfg.model.model_copy(update={"lora": LoraConfig()})  # a trained model has its adapters merged in
    inputs = load_evaluation(cfg.model_copy(update={"model": merged}))
    set_threads(cfg.model.threads)
    with opened_backend(cfg, learner=False) as backend, closing(evaluation_engine(cfg, inputs, backend)) as engine:
        return evaluate(engine, inputs.scorer, inputs.held_out, evaluation_settings(cfg))


def _check_unfinished(cfg: Config, folder: Path | None) -> None:
    """Raise UserError when nothing is left to do."""
    run_dir, done = Path(cfg.run.dir), checkpoint.step_of(folder) if folder else 0
    if not folder and run_folder.finished(run_dir):
        raise UserError(
            f"{run_dir} holds a finished run without its checkpoints; choose another run.dir, or --overwrite",
            code=ErrorCode.CHECKPOINT_MISSING,
            file=run_dir,
        )
    if done > cfg.steps or run_folder.finished(run_dir) == cfg.steps:
        raise UserError(
            f"{run_dir} holds a run already: all {cfg.steps} steps are done. To train longer: "
            f"{checkpoint.resume_command(run_dir)} steps={2 * max(done, cfg.steps)}; to start again: another run.dir, "
            "or --overwrite",
            code=ErrorCode.RUN_FOLDER_TAKEN,
            file=run_dir,
            key="run.dir",
        )


def _check_backend(cfg: Config) -> None:
    """Raise UserError when this process was not started in the way that the backend needs."""
    if cfg.backend.kind == "torchrun":
        torchrun.require_torchrun(cfg.backend.ranks)
    elif cfg.backend.kind == "ray" and torchrun.world_size() > 1:
        raise UserError(
            "backend.kind=ray: Ray starts the processes; start one without torchrun",
            code=ErrorCode.CONFIG_CONFLICT,
            key="backend.kind",
        )
    sequence, started = cfg.optim.sequence_parallel, torchrun.world_size()
    if started > 1 and ":" in cfg.model.device:
        raise UserError(
            f"model.device={cfg.model.device}: {started} processes would share one GPU; use auto, which gives each its "
            "own, or cpu",
            code=ErrorCode.CONFIG_CONFLICT,
            key="model.device",
        )
    if cfg.backend.kind != "ray" and started % sequence:
        raise UserError(
            f"optim.sequence_parallel={sequence} does not divide the number of processes that share the learner, "
            f"{started}; start a multiple of it with torchrun --nproc-per-node",
            code=ErrorCode.CONFIG_CONFLICT,
            key="optim.sequence_parallel",
        )


def _start(cfg: Config, message: str = "") -> Result:
    """Train a new run. A run whose components cannot be made leaves the folder as it was."""
    _check_backend(cfg)
    run_dir, console = Path(cfg.run.dir), Console()
    run_folder.check_free(cfg)
    inputs = load_inputs(cfg)
    with opened_backend(cfg) as backend:
        components = build(cfg, inputs, on_fault=_warn(console), backend=backend)
        restarts = LearnerRestarts(run_dir, console, backend)
        return _run_to_end(components, *beginning(cfg, inputs, console), message, restarts)


def _resume(cfg: Config, folder: Path, message: str) -> Result:
    """Train from the checkpoint in `folder` to the last step."""
    _check_backend(cfg)
    run_dir, console = Path(cfg.run.dir), Console()
    saved = checkpoint.load(folder, cfg.rollout.group)
    inputs = load_inputs(cfg, folder)
    if changed := changed_problems(saved.counters.problems, inputs.fingerprint):
        raise UserError(
            f"{run_dir}: the training problems are not those the run began with ({changed}); "
            f"{remedy(saved.counters.problems)}",
            code=ErrorCode.RUN_PROBLEMS_CHANGED,
            file=run_dir,
            key="data.path",
        )
    if load_saved(run_dir / run_folder.CONFIG).optim != cfg.optim:  # changed to fix what made mini-batches be skipped
        saved = replace(saved, counters=replace(saved.counters, skipped_in_row=0))
    with opened_backend(cfg) as backend:
        components = build(cfg, inputs, saved, _warn(console), backend)
        restarts = LearnerRestarts(run_dir, console, backend)
        message = f"{message}, from step {saved.counters.step} of {cfg.steps}"
        return _run_to_end(components, *continuation(cfg, saved, console), message, restarts)


def _run_to_end(
    components: Components, counters: Counters, log: RunLog, message: str, restarts: LearnerRestarts
) -> Result:
    """Run, from the newest checkpoint again whenever the learner is lost, and close the components."""
    with closing(components.engine):
        while True:
            try:
                with closing(components.learner):
                    return _run(components, counters, log, message)
            except LearnerLost as error:
                lost = error
            components, counters, log = restarts.restart(components, lost)
            message = ""


def _run(components: Components, counters: Counters, log: RunLog, message: str) -> Result:
    """Train from `counters` to the last step and finish the run. Finishing can be repeated until it is marked."""
    cfg, run_dir = components.config, Path(components.config.run.dir)
    model, tokenizer = run_dir / MODEL, components.inputs.tokenizer
    with log, catching_signals() as interrupts, CheckpointWriter(run_dir, tokenizer, cfg.run) as writer:
        if message:
            log.print(message)
        try:
            Loop(components, log, writer, interrupts, counters).run()
        except LearnerLost:
            if not interrupts.received:
                raise
            folder = checkpoint.newest(run_dir)
            step = checkpoint.step_of(folder) if folder else 0
            raise Interrupted(run_dir, step, interrupts.received) from None
        with checkpoint.writing(run_dir):
            _save_model(components, model)
            report = write_report([run_dir]) if cfg.log.report else None
            if report:
                log.report(report)
            run_folder.finish(run_dir, cfg.steps)
        log.summary(model=model, report=report)
    return Result(run_dir, model)


def _save_model(components: Components, model: Path) -> None:
    with atomic_files.replacing_folder(model) as partial:
        components.learner.export(partial)
        components.inputs.tokenizer.save_pretrained(partial)


def _warn(console: Console) -> partial[None]:
    return partial(print_line, console, style="yellow")
