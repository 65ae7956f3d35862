"""Builds the rooms from a configuration and hands them to the loop; begins runs, finds them again and ends them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ulorl.common import atomic_files
from ulorl.config.loading import load_saved, with_overrides
from ulorl.config.model_config import LoraConfig
from ulorl.config.resume import resumable_keys
from ulorl.config.tree import Config
from ulorl.data.problem_stream import ProblemStream
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_guarded, pick_device
from ulorl.errors import UserError
from ulorl.evaluation.evaluate import Evaluation
from ulorl.learner.learner import Learner
from ulorl.learner.model_checks import check_head, check_packing
from ulorl.models.attention import set_attention
from ulorl.models.lora import add_lora
from ulorl.models.model_loading import load_model
from ulorl.report.html_report import write_report
from ulorl.rollout.pool_io import Pools
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.runs import run_folder
from ulorl.runs.run_log import RunLog
from ulorl.training import checkpoint
from ulorl.training.checkpoint import Counters, Writer
from ulorl.training.interrupts import interrupts
from ulorl.training.loop import Loop, Rooms, run_evaluation
from ulorl.training.preflight import Inputs, load_inputs
from ulorl.training.specifications import engine_spec, model_source
from ulorl.training.weight_check import TOLERANCE, Probe
from ulorl.types import Metrics, Sampling

NEW_RUN = Counters()


@dataclass(frozen=True)
class Result:
    """A finished run."""

    dir: Path
    model: Path  # a transformers folder
    before: Evaluation | None
    after: Evaluation | None

    @property
    def metrics(self) -> list[dict[str, float | int | None]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def train(cfg: Config, *, overwrite: bool = False) -> Result:
    """Train from the start, or go on with the run in `run.dir` when it is this one, unfinished. Raises UserError for
    anything wrong with recipe, data or model folder, before the model is loaded; and when `run.dir` holds a finished
    run, another one (`overwrite` removes it), or anything else."""
    run_dir = Path(cfg.run.dir)
    if overwrite or not run_folder.holds_run(run_dir):
        return _begin(cfg, overwrite=overwrite)
    with run_folder.locked(run_dir):
        folder = checkpoint.newest(run_dir)  # before config.json, whose keys another version may have named otherwise
        changed = run_folder.changes(cfg)
        _check_unfinished(cfg, folder)
        if folder:
            new = f" with {run_folder.changes_text(changed)}" if changed else ""
            return _go_on(
                cfg, folder, f"{run_dir} holds this run, unfinished (--overwrite begins anew). It goes on{new}"
            )
    return _begin(cfg, f"{run_dir} holds this run without a checkpoint yet: it begins anew")


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Result:
    """Go on from the newest checkpoint, as if the run had never stopped; without one yet, from the beginning. Raises
    UserError when there is no run, or when an override changes what the run is (only `resumable_keys` may)."""
    if not run_folder.holds_run(run_dir):
        load_saved(run_dir / run_folder.CONFIG)  # says what is wrong with it
        raise UserError(f"{run_dir} is no run's folder")
    with run_folder.locked(run_dir):
        folder = checkpoint.newest(run_dir)
        saved = load_saved(run_dir / run_folder.CONFIG)
        moved = saved.model_copy(update={"run": saved.run.model_copy(update={"dir": str(run_dir)})})
        cfg = with_overrides(moved, overrides, allowed=resumable_keys(), purpose="a resumed run")
        _check_unfinished(cfg, folder)
        if folder:
            return _go_on(cfg, folder, f"{run_dir} goes on")
    return _begin(cfg, f"{run_dir} has no checkpoint yet: it begins anew")


def _check_unfinished(cfg: Config, folder: Path | None) -> None:
    """Raises UserError when there is nothing left to do."""
    run_dir, done = Path(cfg.run.dir), checkpoint.step_of(folder) if folder else 0
    if not folder and run_folder.finished(run_dir):
        raise UserError(
            f"{run_dir} holds a finished run without its checkpoints; choose another run.dir, or --overwrite"
        )
    if done > cfg.steps or run_folder.finished(run_dir) == cfg.steps:
        raise UserError(
            f"{run_dir} holds a run already: all {cfg.steps} steps are done. To train longer: ulorl train --resume "
            f"{run_dir} steps={2 * max(done, cfg.steps)}; to start anew: another run.dir, or --overwrite"
        )


def _begin(cfg: Config, said: str = "", *, overwrite: bool = False) -> Result:
    run_dir = Path(cfg.run.dir)
    run_folder.check_free(cfg)
    inputs = load_inputs(cfg)
    rooms = build(cfg, inputs)
    with run_folder.locked(run_dir):
        if not overwrite and checkpoint.newest(run_dir):  # of a run that began meanwhile
            raise UserError(f"{run_dir} holds a run by now, of another process; choose another run.dir, or --overwrite")
        with atomic_files.writing(run_dir, lambda: checkpoint.mend(run_dir)):
            run_folder.clear(run_dir)
            run_folder.save_config(cfg)
        # The evaluation before training is what step 0 still lacks.
        pending: Metrics | None = {"step": 0, "version": 0} if inputs.held_out else None
        return _go(rooms, Counters(problems=inputs.fingerprint, pending=pending), said, resumed=False)


def _go_on(cfg: Config, folder: Path, said: str) -> Result:
    run_dir = Path(cfg.run.dir)
    counters, pools = checkpoint.load(folder, cfg.rollout.group)
    inputs = load_inputs(cfg, folder=str(folder / "model"))
    if inputs.fingerprint != counters.problems:
        raise UserError(
            f"{run_dir}: the training problems are not those the run began with (other number, ids or order); "
            "put data.path back as it was"
        )
    rooms = build(cfg, inputs, folder, counters, pools)
    if load_saved(run_dir / run_folder.CONFIG).optim == cfg.optim:  # else it was changed to mend what was skipped
        rooms.learner.skipped_in_row = counters.skipped_in_row
    with atomic_files.writing(run_dir, lambda: checkpoint.mend(run_dir)):
        run_folder.save_config(cfg)
    return _go(rooms, counters, f"{said}, from step {counters.step} of {cfg.steps}", resumed=True)


def build(
    cfg: Config,
    inputs: Inputs,
    folder: Path | None = None,
    counters: Counters = NEW_RUN,
    pools: Pools | None = None,
) -> Rooms:
    """The rooms of a run, new or as a checkpoint `folder` left them."""
    set_threads(cfg)
    torch.manual_seed(cfg.seed)
    policy = load_model(inputs.source, dtype=getattr(torch, cfg.model.dtype), device=pick_device(cfg.model.device))
    if cfg.model.lora.rank:
        add_lora(policy, cfg.model.lora, checkpoint=folder)
    set_attention(policy, cfg.model.attention)
    check_head(policy)
    if cfg.optim.layout == "packed":
        check_packing(policy, autocast=cfg.optim.autocast == "bfloat16")
    learner = Learner(
        policy,
        optim=cfg.optim,
        objective=cfg.objective,
        temperature=cfg.rollout.temperature,
        max_tokens=cfg.rollout.max_tokens,
        pad_id=_pad_id(inputs.tokenizer),
        version=counters.version,
        seed=cfg.seed,
        cpu_kernels=cfg.model.cpu_kernels,
    )
    if folder:
        with checkpoint.reading(folder):
            learner.load_optimizer(folder / "optimizer.safetensors")
    sampling = Sampling(cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k)
    probe = Probe(
        [prompt for _, prompt in inputs.problems],
        sampling,
        seed=cfg.seed,
        tolerance=cfg.engine.tolerance or max(TOLERANCE[cfg.engine_dtype], TOLERANCE[cfg.learner_dtype]),
    )

    def renew(engine: Engine) -> None:
        engine.load_weights(learner.weights(), learner.version)
        probe(engine, learner)

    engine = make_guarded(
        engine_spec(cfg, longest=inputs.longest(cfg), version=counters.version),
        inputs.source,
        original=model_source(cfg),
        renew=renew,
        resume=f"ulorl train --resume {cfg.run.dir}",
    )
    if folder and cfg.model.lora.rank:  # a checkpoint's model is without its adapters
        engine.load_weights(learner.weights(), counters.version)
    scheduler = Scheduler(
        group=cfg.rollout.group,
        segment_tokens=cfg.rollout.segment_tokens,
        max_tokens=cfg.rollout.max_tokens,
        sampling=sampling,
        seed=cfg.seed,
        unfinished=pools.unfinished if pools else UnfinishedPool(),
        experience=pools.experience if pools else ExperiencePool(cfg.rollout.group),
        next_group=counters.next_group,
    )
    return Rooms(
        config=cfg,
        inputs=inputs,
        stream=ProblemStream(inputs.problems, cfg.seed, counters.cursor),
        scheduler=scheduler,
        engine=engine,
        learner=learner,
        probe=probe,
    )


def _go(rooms: Rooms, counters: Counters, said: str, *, resumed: bool) -> Result:
    """From `counters` to the end. The end can be made again, until `rundir.finish` marks it."""
    cfg, run_dir = rooms.config, Path(rooms.config.run.dir)
    model = run_dir / "model"
    with closing(rooms.engine):
        with atomic_files.writing(run_dir, lambda: checkpoint.mend(run_dir)):
            log = RunLog(run_dir, cfg, counters.step if resumed else None, logged=counters.logged if resumed else None)
        with log, interrupts() as asked, Writer(run_dir, rooms.inputs.tokenizer, cfg.run) as writer:
            if said:
                log.print(said)
            loop = Loop(rooms, log, writer, asked, counters)
            loop.run()
            with atomic_files.writing(run_dir, lambda: checkpoint.mend(run_dir)):
                _save_model(rooms, model)
                report = write_report(run_dir)
                run_folder.finish(run_dir, cfg.steps)
            log.summary(model=model, report=report)
    return Result(run_dir, model, loop.before, loop.after)


def _save_model(rooms: Rooms, model: Path) -> None:
    """Written beside its place, so that what stands there is a whole model."""
    with atomic_files.replacing_folder(model) as partial:
        rooms.learner.save_model(partial)
        rooms.inputs.tokenizer.save_pretrained(partial)


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Padding is masked everywhere, so any token will do where the tokenizer has none."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)


def evaluate_config(cfg: Config) -> Evaluation:
    """avg@k of `model.path` on the held-out problems of a configuration, without training."""
    if not cfg.eval.data:
        raise UserError("eval.data is missing: it says which problems are held out, for example eval.data.split=test")
    saved = cfg.model.model_copy(update={"lora": LoraConfig()})  # a trained model has its adapters merged in
    inputs = load_inputs(cfg.model_copy(update={"model": saved}))
    set_threads(cfg)
    with closing(make_guarded(engine_spec(cfg, longest=inputs.longest(cfg)), inputs.source)) as engine:
        return run_evaluation(cfg, inputs, engine)


def set_threads(cfg: Config) -> None:
    """torch's CPU threads, as `model.threads` says; 0 leaves them alone."""
    if cfg.model.threads:
        torch.set_num_threads(cfg.model.threads)
