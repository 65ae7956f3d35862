"""Makes the components of a run from its configuration: one function for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ulorl.backends import torchrun
from ulorl.backends.ray.ray_preflight import set_environment
from ulorl.config.tree import Config
from ulorl.data.problem_stream import ProblemStream
from ulorl.engines.engine import Engine
from ulorl.engines.factory import make_retrying_engine, pick_device
from ulorl.engines.fault_messages import print_to_stderr
from ulorl.engines.fleet import FleetSettings
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.learner import Learner, LearnerLost
from ulorl.learner.learner_files import is_sharded
from ulorl.learner.make_learner import LearnerBuild, make_learner
from ulorl.rollout.scheduler import Scheduler
from ulorl.training import checkpoint
from ulorl.training.checkpoint import NEW_RUN, Checkpoint
from ulorl.training.preflight import Inputs
from ulorl.training.specifications import engine_spec, learner_spec, model_source, rollout_sampling, rollout_schedule
from ulorl.training.weight_check import TOLERANCE, WeightCheck
from ulorl.types import Prompted

if TYPE_CHECKING:
    from ulorl.backends.ray.ray_backend import RayBackend


@dataclass(frozen=True)
class Components:
    """The components of a run, with the configuration and the checked inputs that they were made from."""

    config: Config
    inputs: Inputs
    stream: ProblemStream[Prompted]
    scheduler: Scheduler
    engine: Engine
    learner: Learner
    weight_check: WeightCheck


@contextmanager
def opened_backend(cfg: Config, *, learner: bool = True) -> Iterator[RayBackend | None]:
    """With `backend.kind=ray`, join or start a cluster and reserve what the run needs there, for the block; None for
    other kinds.

    learner: whether a learner is needed too. Raises UserError.
    """
    if cfg.backend.kind != "ray":
        yield None
        return
    set_environment(cfg.backend)  # before Ray is imported
    from ulorl.backends.ray.ray_backend import opened

    device, threads = cfg.model.device, cfg.model.threads
    with opened(cfg.backend, device=device, engine_gpus=cfg.engine.gpus, threads=threads, learner=learner) as backend:
        yield backend


def build(
    cfg: Config,
    inputs: Inputs,
    saved: Checkpoint | None = None,
    on_fault: Callable[[str], None] = print_to_stderr,
    backend: RayBackend | None = None,
) -> Components:
    """Make the components of a new run, or of a run that resumes from a checkpoint.

    saved: the checkpoint; None for a new run. on_fault: called with a line of text at every fault of the engine.
    backend: what `opened_backend` returned for the configuration. Raises UserError when the model cannot be loaded,
    trained or decoded with these settings.
    """
    set_threads(cfg.model.threads)
    torch.manual_seed(cfg.seed)
    counters = saved.counters if saved else NEW_RUN
    try:
        learner = _learner(cfg, inputs, saved, backend)
    except LearnerLost as lost:
        raise UserError(f"{lost} while it was made", code=ErrorCode.LEARNER_LOST, key="backend.ranks") from lost
    weight_check = _weight_check(cfg, inputs)
    if backend:
        engine = _fleet(cfg, inputs, learner.version, on_fault, backend)
        if saved:
            _load_present(engine, learner)
    else:
        engine = _engine(cfg, inputs, learner, weight_check, saved, on_fault)
    return Components(
        config=cfg,
        inputs=inputs,
        stream=ProblemStream(inputs.problems, cfg.seed, counters.cursor),
        scheduler=_scheduler(cfg, saved),
        engine=engine,
        learner=learner,
        weight_check=weight_check,
    )


def with_new_learner(of: Components, saved: Checkpoint | None, backend: RayBackend | None) -> Components:
    """Return components of the same run whose learner, pools and data cursor are those of a checkpoint, or of the run's
    beginning without one. The engine stays and gets the weights. Raises LearnerLost when the new learner fails too."""
    cfg, counters = of.config, saved.counters if saved else NEW_RUN
    inputs = replace(of.inputs, source=model_source(cfg, str(saved.folder / "model") if saved else None))
    of.engine.abort()
    of.engine.sleep()  # its memory may be the learner's
    learner = _learner(cfg, inputs, saved, backend)
    _load_present(of.engine, learner)
    stream = ProblemStream(inputs.problems, cfg.seed, counters.cursor)
    return replace(of, inputs=inputs, stream=stream, scheduler=_scheduler(cfg, saved), learner=learner)


def set_threads(threads: int) -> None:
    """Set the number of CPU threads of torch; 0 leaves it as it is."""
    if threads:
        torch.set_num_threads(threads)


def _learner(cfg: Config, inputs: Inputs, saved: Checkpoint | None, backend: RayBackend | None) -> Learner:
    counters, pad_id = saved.counters if saved else NEW_RUN, inputs.tokenizer.pad_token_id
    build = LearnerBuild(
        spec=learner_spec(cfg, pad_id=0 if pad_id is None else int(pad_id)),  # any token will do: padding is masked
        model=cfg.model,
        source=inputs.source,
        checkpoint=saved.folder if saved else None,
        version=counters.version,
        skipped_in_row=counters.skipped_in_row,
    )
    if backend:
        return backend.learner(build)
    if torchrun.world_size() > 1:
        return torchrun.TorchrunLearner(build)
    return make_learner(build, pick_device(cfg.model.device))


def _weight_check(cfg: Config, inputs: Inputs) -> WeightCheck:
    return WeightCheck(
        [prompt for _, prompt in inputs.problems],
        rollout_sampling(cfg),
        seed=cfg.seed,
        max_tokens=cfg.rollout.max_tokens,
        tolerance=cfg.engine.tolerance or max(TOLERANCE[cfg.engine_dtype], TOLERANCE[cfg.learner_dtype]),
        engines=cfg.engine_count,
    )


def _engine(
    cfg: Config,
    inputs: Inputs,
    learner: Learner,
    weight_check: WeightCheck,
    saved: Checkpoint | None,
    on_fault: Callable[[str], None],
) -> Engine:
    def check(engine: Engine, version: int) -> None:
        if cfg.rollout.overlap:
            weight_check.replacement(engine, version, learner)
        else:
            weight_check(engine, learner)

    weights = learner.publish()
    sharded = saved is not None and is_sharded(saved.folder)
    engine = make_retrying_engine(
        engine_spec(cfg, longest=inputs.longest(cfg), version=learner.version),
        model_source(cfg) if sharded else inputs.source,
        original=model_source(cfg),
        weights=weights.tensors,
        check=check,
        resume=checkpoint.resume_command(Path(cfg.run.dir)),
        on_fault=on_fault,
    )
    if sharded or (saved and cfg.model.lora.rank):  # the checkpoint's model is without weights, or without adapters
        engine.load_weights(weights.tensors, weights.version)
    return engine


def evaluation_engine(cfg: Config, inputs: Inputs, backend: RayBackend | None) -> Engine:
    """Make the engine, or with `backend` the engines, of an evaluation without training."""
    if backend:
        return _fleet(cfg, inputs, 0, print_to_stderr, backend)
    return make_retrying_engine(engine_spec(cfg, longest=inputs.longest(cfg)), inputs.source)


def _fleet(cfg: Config, inputs: Inputs, version: int, on_fault: Callable[[str], None], backend: RayBackend) -> Engine:
    settings = FleetSettings(
        slots=cfg.engine.slots,
        group=cfg.rollout.group,
        max_faults=cfg.engine.max_faults,
        deadline=cfg.engine.deadline,
        resume=checkpoint.resume_command(Path(cfg.run.dir)),
    )
    # The folder of a checkpoint may be removed before an engine is replaced, so engines start from the model of the run
    # and get the present weights.
    spec = engine_spec(cfg, longest=inputs.longest(cfg), version=version)
    return backend.fleet(spec, model_source(cfg), settings, on_fault)


def _load_present(engine: Engine, learner: Learner) -> None:
    weights = learner.publish()
    engine.load_weights(weights.tensors, weights.version)


def _scheduler(cfg: Config, saved: Checkpoint | None) -> Scheduler:
    return Scheduler(
        rollout_schedule(cfg.rollout),
        max_tokens=cfg.rollout.max_tokens,
        sampling=rollout_sampling(cfg),
        seed=cfg.seed,
        unfinished=saved.pools.unfinished if saved else None,
        experience=saved.pools.experience if saved else None,
        lengths=saved.pools.lengths if saved else None,
        next_group=saved.counters.next_group if saved else 0,
        slots=cfg.engine.slots * cfg.engine_count,
    )
