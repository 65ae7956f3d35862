"""Builds the rooms from a configuration and hands them to the loop."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ulorl import checkpoint, config
from ulorl.algorithm import Step, ulorl_step
from ulorl.checkpoint import Counters, Pools
from ulorl.config import Config
from ulorl.data.stream import ProblemStream
from ulorl.engines.base import Engine
from ulorl.engines.make import make_engine, pick_device
from ulorl.errors import UserError
from ulorl.evaluation import Evaluation, evaluate
from ulorl.inputs import Inputs, Prompted, load_inputs
from ulorl.interrupts import Interrupted, diverged, interrupts
from ulorl.learner.attention import check_packing, set_attention
from ulorl.learner.lora import add_lora
from ulorl.learner.model import check_head, load_model
from ulorl.learner.update import Learner
from ulorl.metrics import evaluation_metrics, step_metrics
from ulorl.probe import TOLERANCE, Probe
from ulorl.report.html import write_report
from ulorl.rollout.pools import ExperiencePool, UnfinishedPool
from ulorl.rollout.scheduler import Scheduler
from ulorl.runlog import RunLog
from ulorl.types import Sampling, Tokens

MAY_CHANGE = (
    "steps", "run.checkpoint_every", "run.keep_checkpoints", "eval.every", "log", "optim.lr", "optim.max_skipped",
)  # fmt: skip
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


@dataclass
class Rooms:
    config: Config
    inputs: Inputs
    stream: ProblemStream[Prompted]
    scheduler: Scheduler
    engine: Engine
    learner: Learner
    probe: Probe


def train(cfg: Config, *, overwrite: bool = False) -> Result:
    """Train from the start. Raises UserError for anything wrong with recipe, data or model folder, before the model
    is loaded, and when `run.dir` holds a run already (`overwrite` removes it)."""
    run_dir = Path(cfg.run.dir)
    if (run_dir / "config.json").exists() and not overwrite:
        raise UserError(
            f"{run_dir} holds a run already. Go on with it: ulorl train --resume {run_dir}; "
            "start anew: another run.dir, or --overwrite"
        )
    if run_dir.exists():
        _check_removable(run_dir, cfg)
    rooms = build(cfg, load_inputs(cfg))
    if run_dir.exists():
        shutil.rmtree(run_dir)
    _save_config(cfg)
    return _go(rooms, start=0)


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Result:
    """Go on from the newest checkpoint, as if the run had never stopped. Raises UserError when there is none, or when
    an override changes what the run is (only `MAY_CHANGE` may)."""
    saved = config.from_json(run_dir / "config.json")
    moved = saved.model_copy(update={"run": saved.run.model_copy(update={"dir": str(run_dir)})})
    cfg = config.overridden(moved, overrides, may_change=MAY_CHANGE)
    folder = checkpoint.latest(run_dir)
    counters, pools = checkpoint.load(folder, cfg.rollout.group)
    if counters.step >= cfg.steps:
        raise UserError(f"{run_dir}: all {cfg.steps} steps are done; to train longer add steps={2 * cfg.steps}")
    inputs = load_inputs(cfg, source=str(folder / "model"))
    if inputs.fingerprint != counters.problems:
        raise UserError(
            f"{run_dir}: the training problems are not those the run began with (other number, ids or order); "
            "put data.path back as it was"
        )
    rooms = build(cfg, inputs, folder, counters, pools)
    _save_config(cfg)
    return _go(rooms, start=counters.step)


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
    source = str(folder / "model") if folder else cfg.model.path
    policy = load_model(
        source,
        dtype=getattr(torch, cfg.model.dtype),
        device=pick_device(cfg.model.device),
        trust_remote_code=cfg.model.trust_remote_code,
        rope=cfg.model.rope,
    )
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
    )
    if folder:
        learner.load_optimizer(folder / "optimizer.safetensors")
    engine = make_engine(cfg, inputs.tokenizer, source, longest=inputs.longest(cfg), version=counters.version)
    if folder and cfg.model.lora.rank:  # a checkpoint's model is without its adapters
        engine.load_weights(learner.weights(), counters.version)
    sampling = Sampling(cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k)
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
        probe=Probe(
            [prompt for _, prompt in inputs.problems],
            sampling,
            seed=cfg.seed,
            tolerance=cfg.engine.tolerance or max(TOLERANCE[cfg.engine_dtype], TOLERANCE[cfg.learner_dtype]),
        ),
    )


def _go(rooms: Rooms, start: int) -> Result:
    cfg, run_dir = rooms.config, Path(rooms.config.run.dir)
    before = after = None
    with (
        closing(rooms.engine),
        RunLog(run_dir, cfg, resume_step=start or None) as log,
        interrupts() as interrupted,
    ):
        rooms.probe(rooms.engine, rooms.learner)
        if start == 0 and rooms.inputs.held_out:
            before, metrics = _evaluate(rooms, log)
            log.step({"step": 0, "version": rooms.learner.version} | metrics)
        for number in range(start + 1, cfg.steps + 1):
            step = _step(rooms, log)
            for skipped in step.update.skipped:
                log.print(f"step {number}: a mini-batch was skipped: {skipped}", style="yellow")
            metrics = step_metrics(number, step, rooms.scheduler, rooms.learner.version)
            last = number == cfg.steps
            if rooms.inputs.held_out and (last or (cfg.eval.every and number % cfg.eval.every == 0)):
                after, evaluated = _evaluate(rooms, log)
                metrics |= evaluated
            log.samples(number, step.groups, partial(_decode, rooms.inputs.tokenizer))
            log.step(metrics)
            if rooms.learner.skipped_in_row >= cfg.optim.max_skipped:
                raise diverged(cfg, number, step.update.skipped[-1])
            stop = interrupted()
            if last or stop or (cfg.run.checkpoint_every and number % cfg.run.checkpoint_every == 0):
                _checkpoint(rooms, number)
            if stop and not last:
                raise Interrupted(run_dir, number, stop)
        model = run_dir / "model"
        rooms.learner.save_model(model)
        rooms.inputs.tokenizer.save_pretrained(model)
        report = write_report(run_dir)
        log.summary(model=model, report=report)
    return Result(run_dir, model, before, after)


def _step(rooms: Rooms, log: RunLog) -> Step:
    """One step of Algorithm 1."""
    new = [rooms.stream.next() for _ in range(rooms.config.rollout.prompts)]
    entering = len(rooms.scheduler.unfinished) + len(new) * rooms.scheduler.group
    with log.phase("rollout", entering, tokens=lambda: rooms.engine.stats.decode_tokens) as phase:
        return ulorl_step(
            rooms.scheduler,
            rooms.engine,
            rooms.inputs.scorer,
            rooms.learner,
            new,
            watch=lambda _: phase.advance(),
            check=rooms.probe,
        )


def _evaluate(rooms: Rooms, log: RunLog) -> tuple[Evaluation, dict[str, float | int | None]]:
    started = time.perf_counter()
    answers = len(rooms.inputs.held_out) * rooms.config.eval.samples
    with log.phase("evaluate", answers, tokens=lambda: rooms.engine.stats.decode_tokens) as phase:
        evaluation = run_evaluation(rooms.config, rooms.inputs, rooms.engine, watch=lambda _: phase.advance())
    return evaluation, evaluation_metrics(evaluation, time.perf_counter() - started)


def run_evaluation(
    cfg: Config, inputs: Inputs, engine: Engine, watch: Callable[..., None] = lambda _: None
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
    )


def _checkpoint(rooms: Rooms, number: int) -> None:
    counters = Counters(
        step=number,
        version=rooms.learner.version,
        cursor=rooms.stream.cursor,
        next_group=rooms.scheduler.next_group,
        problems=rooms.inputs.fingerprint,
    )
    run = rooms.config.run
    checkpoint.save(
        Path(run.dir), counters, rooms.scheduler, rooms.learner, rooms.inputs.tokenizer, keep=run.keep_checkpoints
    )


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    """As `Scorer` decodes outputs."""
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Padding is masked everywhere, so any token will do where the tokenizer has none."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0)


def _save_config(cfg: Config) -> None:
    folder = Path(cfg.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(cfg.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _check_removable(run_dir: Path, cfg: Config) -> None:
    """A folder is replaced only when it is empty or a run's, and holds nothing that this run reads."""
    if not run_dir.is_dir():
        raise UserError(f"run.dir={run_dir} is a file; choose another run.dir")
    if not any(run_dir.iterdir()):
        return
    try:
        config.from_json(run_dir / "config.json")
    except UserError:
        raise UserError(f"{run_dir} is not empty and not a run's folder; choose another run.dir") from None
    for key, path in (("model.path", cfg.model.path), ("data.path", cfg.data.path)):
        if Path(path).resolve().is_relative_to(run_dir.resolve()):
            raise UserError(f"{key}={path} lies in {run_dir}, which --overwrite would remove; choose another run.dir")


def evaluate_config(cfg: Config) -> Evaluation:
    """avg@k of `model.path` on the held-out problems of a configuration, without training."""
    if not cfg.eval.data:
        raise UserError("eval.data is missing: it says which problems are held out, for example eval.data.split=test")
    saved = cfg.model.model_copy(update={"lora": config.Lora()})  # a trained model has its adapters merged in
    inputs = load_inputs(cfg.model_copy(update={"model": saved}))
    set_threads(cfg)
    with closing(make_engine(cfg, inputs.tokenizer, cfg.model.path, longest=inputs.longest(cfg))) as engine:
        return run_evaluation(cfg, inputs, engine)


def set_threads(cfg: Config) -> None:
    """torch's CPU threads, as `model.threads` says; 0 leaves them alone."""
    if cfg.model.threads:
        torch.set_num_threads(cfg.model.threads)
