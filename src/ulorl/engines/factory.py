"""The rollout engine that a configuration asks for: the one place that knows their kinds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ulorl.config.engine_config import EngineConfig
from ulorl.config.tree import Config
from ulorl.engines.engine import Engine
from ulorl.engines.guard import GuardedEngine
from ulorl.engines.torch.decodable import full_attention_layers, longest_row
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.errors import UserError
from ulorl.models.cpu.linear_products import has_bfloat16
from ulorl.models.load import context_length, eos_ids, load_config, load_model, resolve
from ulorl.models.rope import rope_overrides
from ulorl.types import Sampling


def make_engine(
    cfg: Config, tokenizer: PreTrainedTokenizerBase, source: str, *, longest: int, version: int = 0
) -> Engine:
    """The engine of `engine.kind` with the weights of `source`.

    longest: tokens of the longest prompt + output it will be asked for; an engine that reserves memory takes it.
    Raises UserError when the engine is not installed or cannot decode this model.
    """
    trust, rope, device = cfg.model.trust_remote_code, cfg.model.rope, pick_device(cfg.model.device)
    ends = eos_ids(source, tokenizer, trust_remote_code=trust)
    if cfg.engine.kind == "vllm":
        from ulorl.engines.vllm.vllm_engine import VllmEngine

        own = load_config(source, trust_remote_code=trust, rope=rope)
        context = context_length(own) or longest
        needed = min(longest, context)
        if 0 < cfg.engine.vllm.max_length < needed:
            raise UserError(
                f"engine.vllm.max_length={cfg.engine.vllm.max_length} is less than the {needed} tokens of the longest "
                "prompt with its output; raise it, or leave it at 0"
            )
        return VllmEngine(
            resolve(source),
            eos_ids=ends,
            slots=cfg.engine.slots,
            prefill_tokens=cfg.engine.prefill_tokens,
            max_length=cfg.engine.vllm.max_length or needed,
            dtype=cfg.engine_dtype,
            temperature=cfg.rollout.temperature,
            settings=cfg.engine.vllm,
            device=device,
            version=version,
            trust_remote_code=trust,
            hf_overrides=rope_overrides(own, context),
        )
    upcast = cfg.engine_dtype == "bfloat16" and device.type == "cpu" and not has_bfloat16()
    dtype = getattr(torch, cfg.model.dtype if upcast else cfg.engine_dtype)
    model = load_model(source, dtype=dtype, device=device, trust_remote_code=trust, rope=rope)
    if upcast:  # the learner's weights, rounded as they are there, multiplied 2.5 times as fast (docs/experiments.md)
        model = model.float()
    return TorchEngine(
        model, eos_ids=ends, slots=cfg.engine.slots, prefill_tokens=cfg.engine.prefill_tokens, version=version
    )


def make_guarded(
    cfg: Config,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    longest: int,
    version: int = 0,
    renew: Callable[[Engine], None] | None = None,
) -> GuardedEngine:
    """`make_engine`'s engine under guard.

    renew: brings an engine that had to be made anew to the present weights, and checks it; None when those of `source`
    are the present ones, and nobody trains on its log-probs.
    """
    trust = cfg.model.trust_remote_code

    def remake() -> Engine:
        # a run may have removed the checkpoint it began from
        folder = source if not renew or Path(source).is_dir() else cfg.model.path
        engine = make_engine(cfg, tokenizer, folder, longest=longest, version=version)
        try:
            if renew:
                renew(engine)
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell
                engine.close()
            raise
        return engine

    return GuardedEngine(
        make_engine(cfg, tokenizer, source, longest=longest, version=version),
        remake=remake,
        eos_ids=eos_ids(source, tokenizer, trust_remote_code=trust),
        vocabulary=load_config(source, trust_remote_code=trust).get_text_config(decoder=True).vocab_size,
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
