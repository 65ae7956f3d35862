"""Makes the components of a run from its configuration: one function for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ulorl.backends import torchrun
from ulorl.config.tree import Config
from ulorl.data.problem_stream import ProblemStream
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_retrying_engine, pick_device
from ulorl.engines.fault_messages import print_to_stderr
from ulorl.engines.retrying import RetryingEngine
from ulorl.learner.learner import Learner
from ulorl.learner.learner_files import is_sharded
from ulorl.learner.make_learner import LearnerBuild, make_learner
from ulorl.rollout.scheduler import Scheduler
from ulorl.training import checkpoint
from ulorl.training.checkpoint import NEW_RUN, Checkpoint
from ulorl.training.preflight import Inputs
from ulorl.training.specifications import engine_spec, learner_spec, model_source, rollout_sampling
from ulorl.training.weight_check import TOLERANCE, WeightCheck
from ulorl.types import Prompted


@dataclass(frozen=True)
class Components:
    """The components of a run, with the configuration and the checked inputs that they were made from."""

    config: Config
    inputs: Inputs
    stream: ProblemStream[Prompted]
    scheduler: Scheduler
    engine: RetryingEngine
    learner: Learner
    weight_check: WeightCheck


def build(
    cfg: Config, inputs: Inputs, saved: Checkpoint | None = None, on_fault: Callable[[str], None] = print_to_stderr
) -> Components:
    """Make the components of a new run, or of a run that resumes from a checkpoint.

    saved: the checkpoint; None for a new run. on_fault: called with a line of text at every fault of the engine.
    Raises UserError when the model cannot be loaded, trained or decoded with these settings.
    """
    set_threads(cfg.model.threads)
    torch.manual_seed(cfg.seed)
    counters = saved.counters if saved else NEW_RUN
    learner = _learner(cfg, inputs, saved)
    weight_check = _weight_check(cfg, inputs)
    return Components(
        config=cfg,
        inputs=inputs,
        stream=ProblemStream(inputs.problems, cfg.seed, counters.cursor),
        scheduler=_scheduler(cfg, saved),
        engine=_engine(cfg, inputs, learner, weight_check, saved, on_fault),
        learner=learner,
        weight_check=weight_check,
    )


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of torch; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def _learner(cfg: Config, inputs: Inputs, saved: Checkpoint | None) -> Learner:
    counters, pad_id = saved.counters if saved else NEW_RUN, inputs.tokenizer.pad_token_id
    build = LearnerBuild(
        spec=learner_spec(cfg, pad_id=0 if pad_id is None else int(pad_id)),  # any token will do: padding is masked
        model=cfg.model,
        source=inputs.source,
        checkpoint=saved.folder if saved else None,
        version=counters.version,
        skipped_in_row=counters.skipped_in_row,
    )
    if torchrun.world_size() > 1:
        return torchrun.TorchrunLearner(build)
    return make_learner(build, pick_device(cfg.model.device))


def _weight_check(cfg: Config, inputs: Inputs) -> WeightCheck:
    return WeightCheck(
        [prompt for _, prompt in inputs.problems],
        rollout_sampling(cfg),
        seed=cfg.seed,
        tolerance=cfg.engine.tolerance or max(TOLERANCE[cfg.engine_dtype], TOLERANCE[cfg.learner_dtype]),
    )


def _engine(
    cfg: Config,
    inputs: Inputs,
    learner: Learner,
    weight_check: WeightCheck,
    saved: Checkpoint | None,
    on_fault: Callable[[str], None],
) -> RetryingEngine:
    def renew(engine: Engine) -> None:
        _load_present(engine, learner)
        weight_check(engine, learner)

    sharded = saved is not None and is_sharded(saved.folder)
    engine = make_retrying_engine(
        engine_spec(cfg, longest=inputs.longest(cfg), version=learner.version),
        model_source(cfg) if sharded else inputs.source,
        original=model_source(cfg),
        renew=renew,
        resume=checkpoint.resume_command(Path(cfg.run.dir)),
        on_fault=on_fault,
    )
    if sharded or (saved and cfg.model.lora.rank):  # the checkpoint's model is without weights, or without adapters
        _load_present(engine, learner)
    return engine


def _load_present(engine: Engine, learner: Learner) -> None:
    weights = learner.publish()
    engine.load_weights(weights.tensors, weights.version)


def _scheduler(cfg: Config, saved: Checkpoint | None) -> Scheduler:
    return Scheduler(
        group=cfg.rollout.group,
        segment_tokens=cfg.rollout.segment_tokens,
        max_tokens=cfg.rollout.max_tokens,
        sampling=rollout_sampling(cfg),
        seed=cfg.seed,
        unfinished=saved.pools.unfinished if saved else None,
        experience=saved.pools.experience if saved else None,
        next_group=saved.counters.next_group if saved else 0,
    )
