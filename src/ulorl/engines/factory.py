"""Makes rollout engines: the one place that knows their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from ulorl.config.engine_config import EngineConfig
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.fault_messages import print_to_stderr
from ulorl.engines.retrying import RetryingEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.torch.supported_models import full_attention_layers, longest_row
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.models.cpu.linear_products import has_bfloat16
from ulorl.models.model_loading import load_model
from ulorl.models.model_source import ModelSource


def make_engine(spec: EngineSpec, source: ModelSource, *, eos_ids: Sequence[int] | None = None) -> Engine:
    """Make the engine of `spec` with the weights of `source`.

    eos_ids: the tokens that end an output; None: those of `source`. Raises UserError when the engine is not installed
    or cannot decode this model.
    """
    if spec.engine.kind == "vllm":
        from ulorl.engines.vllm.vllm_engine import VllmEngine

        return VllmEngine(spec, source, eos_ids=eos_ids)
    upcast = spec.dtype == "bfloat16" and spec.device.type == "cpu" and not has_bfloat16()
    dtype = getattr(torch, spec.weights_dtype if upcast else spec.dtype)
    model = load_model(source, dtype=dtype, device=spec.device)
    if upcast:  # the learner's weights, rounded as they are there, multiplied 2.5 times as fast (docs/experiments.md)
        model = model.float()
    return TorchEngine(
        model,
        eos_ids=source.eos_ids if eos_ids is None else eos_ids,
        slots=spec.engine.slots,
        prefill_tokens=spec.engine.prefill_tokens,
        version=spec.version,
        cpu_kernels=spec.cpu_kernels,
    )


def own_process_spec(spec: EngineSpec, *, gpu: bool) -> EngineSpec:
    """Return the spec of an engine in a process of its own, which sees no GPU but its own ones.

    gpu: whether it has any. vLLM picks its GPUs itself; its `device` says where new weights come from, which is the
    memory of the CPU.
    """
    on_gpu = gpu and spec.engine.kind == "torch"
    return replace(spec, device=torch.device("cuda" if on_gpu else "cpu"))


def make_retrying_engine(
    spec: EngineSpec,
    source: ModelSource,
    *,
    original: ModelSource | None = None,
    weights: Iterable[tuple[str, torch.Tensor]] | None = None,
    check: Callable[[Engine, int], None] | None = None,
    resume: str = "",
    on_fault: Callable[[str], None] = print_to_stderr,
) -> RetryingEngine:
    """Make the engine of `make_engine`, checked, with retries and restarts after faults.

    original: what to restart it from when the folder of `source`, a checkpoint, no longer exists. weights: those of
    `source`, for a restarted engine, a handle that can be iterated any number of times; None: it has them from the
    folder. check: raises when a restarted engine has other weights than those of a version; None when nothing is
    trained on the engine's log-probs. resume: the command that resumes the run, for messages. on_fault: called with a
    line of text at every fault.
    """

    def remake() -> Engine:
        return make_engine(spec, source if original is None or Path(source.location).is_dir() else original)

    return RetryingEngine(
        make_engine(spec, source),
        remake=remake,
        checks=SegmentChecks(source.eos_ids, source.vocabulary, spec.sampling if check else None),
        weights=weights,
        version=spec.version,
        check=check or (lambda *_: None),
        max_faults=spec.engine.max_faults,
        deadline=spec.engine.deadline,
        resume=resume,
        on_fault=on_fault,
    )


def check_engine(settings: EngineConfig, *, processes: int = 1) -> None:
    """Refuse an engine that is not installed, or a setting that it does not have, before a model is loaded.

    processes: those that share the learner with the process of the engine. Raises UserError.
    """
    if settings.kind == "vllm":
        from ulorl.engines.vllm.vllm_arguments import check_arguments, check_processes

        check_processes(settings.vllm, processes)
        check_arguments(settings.vllm)


def check_decodable(settings: EngineConfig, model: PreTrainedModel) -> None:
    """Refuse a model, which may be on the meta device, that the embedded engine cannot decode. Raises UserError.

    vLLM refuses models itself when it starts.
    """
    if settings.kind == "torch":
        full_attention_layers(model, longest_row(model, None))


def pick_device(name: str) -> torch.device:
    """Return the device that `model.device` names; `auto` is the first GPU, and the CPU without one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
