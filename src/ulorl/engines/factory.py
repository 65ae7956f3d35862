"""The rollout engine that a configuration asks for: the one place that knows their kinds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ulorl.config.engine_config import EngineConfig
from ulorl.config.tree import Config
from ulorl.engines.engine import Engine
from ulorl.engines.guard import GuardedEngine
from ulorl.engines.torch.decodable import full_attention_layers, longest_row
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.errors import UserError
from ulorl.models.cpu.linear_products import has_bfloat16
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource
from ulorl.models.rope import rope_overrides
from ulorl.types import Sampling


def make_engine(cfg: Config, source: ModelSource, *, longest: int, version: int = 0) -> Engine:
    """Make the engine of `engine.kind` with the weights of `source`.

    longest: tokens of the longest prompt + output it will be asked for; an engine that reserves memory takes it.
    Raises UserError when the engine is not installed or cannot decode this model.
    """
    device = pick_device(cfg.model.device)
    if cfg.engine.kind == "vllm":
        from ulorl.engines.vllm.vllm_engine import VllmEngine

        context = source.context_length or longest
        needed = min(longest, context)
        if 0 < cfg.engine.vllm.max_length < needed:
            raise UserError(
                f"engine.vllm.max_length={cfg.engine.vllm.max_length} is less than the {needed} tokens of the longest "
                "prompt with its output; raise it, or leave it at 0"
            )
        return VllmEngine(
            source,
            eos_ids=source.eos_ids,
            slots=cfg.engine.slots,
            prefill_tokens=cfg.engine.prefill_tokens,
            max_length=cfg.engine.vllm.max_length or needed,
            dtype=cfg.engine_dtype,
            temperature=cfg.rollout.temperature,
            settings=cfg.engine.vllm,
            device=device,
            version=version,
            hf_overrides=rope_overrides(source.config, context),
        )
    upcast = cfg.engine_dtype == "bfloat16" and device.type == "cpu" and not has_bfloat16()
    dtype = getattr(torch, cfg.model.dtype if upcast else cfg.engine_dtype)
    model = load_model(source, dtype=dtype, device=device)
    if upcast:  # the learner's weights, rounded as they are there, multiplied 2.5 times as fast (docs/experiments.md)
        model = model.float()
    return TorchEngine(
        model, eos_ids=source.eos_ids, slots=cfg.engine.slots, prefill_tokens=cfg.engine.prefill_tokens, version=version
    )


def make_guarded(
    cfg: Config,
    source: ModelSource,
    *,
    longest: int,
    version: int = 0,
    renew: Callable[[Engine], None] | None = None,
) -> GuardedEngine:
    """`make_engine`'s engine under guard.

    renew: brings an engine that had to be made anew to the present weights, and checks it; None when those of `source`
    are the present ones, and nobody trains on its log-probs.
    """

    def remake() -> Engine:
        # a run may have removed the checkpoint it began from
        kept = not renew or Path(source.location).is_dir()
        present = source if kept else replace(source, path=cfg.model.path)
        engine = make_engine(cfg, present, longest=longest, version=version)
        try:
            if renew:
                renew(engine)
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                engine.close()
            raise
        return engine

    return GuardedEngine(
        make_engine(cfg, source, longest=longest, version=version),
        remake=remake,
        eos_ids=source.eos_ids,
        vocabulary=source.vocabulary,
        sampling=Sampling(cfg.rollout.temperature, cfg.rollout.top_p, cfg.rollout.top_k) if renew else None,
        version=version,
        max_faults=cfg.engine.max_faults,
        deadline=cfg.engine.deadline,
        resume=f"ulorl train --resume {cfg.run.dir}" if renew else "",
    )


def check_engine(settings: EngineConfig) -> None:
    """Raises UserError when the engine is not installed or a setting is none of its own, before a model is loaded."""
    if settings.kind == "vllm":
        from ulorl.engines.vllm.vllm_engine import check_arguments

        check_arguments(settings.vllm)


def check_decodable(settings: EngineConfig, model: PreTrainedModel) -> None:
    """Raises UserError when the embedded engine cannot decode a model of this configuration; its weights may be meta
    tensors. vLLM says so itself when it starts."""
    if settings.kind == "torch":
        full_attention_layers(model, longest_row(model, None))


def pick_device(name: str) -> torch.device:
    """`model.device`: auto is the first GPU, and the CPU without one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
