"""Latency profiles of the embedded engine, and of the engine of a recipe: `ulorl bench engine --profile FILE`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

from ulorl.bench.engine_bench import PREFILL_TOKENS, check_length
from ulorl.bench.machine_facts import facts
from ulorl.bench.profile_meter import Grid, ProfileMeter, Subject, grid
from ulorl.common.progress import ProgressBars
from ulorl.config.tree import Config
from ulorl.engines.factory import check_engine, make_engine, own_process_spec
from ulorl.engines.padding import CPU_PADDING, GPU_PADDING
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import TINY, ModelSource
from ulorl.planning.latency_profile import LatencyProfile
from ulorl.planning.recipe_settings import longest_sample
from ulorl.training.specifications import engine_spec, model_source, rollout_sampling

_STEPS = 16  # tokens that a row may have beyond the longest one, for the steps of a point


def run(model: str = TINY, slots: int = 32, max_tokens: int = 512, *, quick: bool = False) -> LatencyProfile:
    """Measure the embedded engine with `model`, in float32 with torch's threads.

    slots: rows decoded at once, at most. max_tokens: of prompt and output. quick: a smaller grid. Raises UserError for
    an unusable model and for rows longer than it takes.
    """
    about = facts()
    loaded = load_model(ModelSource(model), dtype=torch.float32, device="cpu")
    check_length(model, loaded, max_tokens)
    engine = TorchEngine(loaded, eos_ids=(), slots=slots, prefill_tokens=PREFILL_TOKENS)
    weights = {name: parameter.detach().clone() for name, parameter in loaded.named_parameters()}
    name, vocabulary = f"{model}, float32", loaded.config.vocab_size
    subject = Subject(engine, name, vocabulary, slots, PREFILL_TOKENS, CPU_PADDING, weights.items)
    return _measured(subject, grid(slots, max_tokens, quick=quick), about)


def run_recipe(config: Config, max_tokens: int | None = None, *, quick: bool = False) -> LatencyProfile:
    """Measure one engine as a recipe describes it, with the recipe's model and sampling. It is given the weights of one
    process: nothing is gathered or merged.

    max_tokens: of prompt and output in the measured rows; None: as many as the recipe allows, or as fit into the
    engine's memory with all its slots. Prefills are measured up to what the recipe allows. Raises UserError for an
    unusable engine or model, and for rows longer than the recipe has or than fit.
    """
    check_engine(config.engine)
    source, slots, about = model_source(config), config.engine.slots, facts()
    context = source.context_length or sys.maxsize
    longest = min(longest_sample(config), context)
    spec = engine_spec(config, longest=min(longest + _STEPS, context))
    if config.backend.kind == "ray":
        spec = own_process_spec(spec, gpu=torch.cuda.is_available())
    learner = load_model(source, dtype=getattr(torch, config.model.dtype), device=spec.device)
    weights = {name: parameter.detach() for name, parameter in learner.named_parameters()}
    with closing(make_engine(spec, source, eos_ids=())) as engine:
        embedded, kv_tokens = isinstance(engine, TorchEngine), getattr(engine, "kv_tokens", 0)
        subject = Subject(
            engine,
            f"{config.model.path}, {spec.dtype}, {config.engine.kind} engine",
            source.vocabulary,
            slots,
            getattr(engine, "prefill_tokens", config.engine.prefill_tokens),
            (CPU_PADDING if spec.device.type == "cpu" else GPU_PADDING) if embedded else None,
            weights.items,
            kv_tokens,
            rollout_sampling(config),
        )
        tokens = _row_tokens(longest, max_tokens, kv_tokens // slots if kv_tokens else longest)
        prefill = grid(slots, min(longest, kv_tokens // 2) if kv_tokens else longest, quick=quick).prefill
        return _measured(subject, replace(grid(slots, tokens, quick=quick), prefill=prefill), about)


def _row_tokens(longest: int, wanted: int | None, fit: int) -> int:
    """Return the tokens of the measured rows. longest: of the recipe. fit: of a row, when all slots are taken. Raises
    UserError when `wanted` is more, and when hardly anything fits."""
    most = min(longest, fit)
    if most < 8 or (wanted or 0) > most:
        message = (
            f"--tokens {wanted or longest}: rows of prompt and output have {longest} tokens at most in this recipe, "
            f"and {fit} if all slots of the engine are taken; give at most {most}, or lower engine.slots"
        )
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")
    return wanted or most


def _measured(subject: Subject, points: Grid, about: dict[str, Any]) -> LatencyProfile:
    meter = ProfileMeter(subject, points, about)
    meter.warm_up()
    with ProgressBars() as bars:
        bar = bars.add("rounds", total=points.rounds)
        for number in range(1, points.rounds + 1):
            meter.measure(0, rounds=number)
            bar.advance()
    return meter.profile()
