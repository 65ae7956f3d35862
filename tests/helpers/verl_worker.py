"""One update of verl's own training worker (FSDP2) on a CPU, in this process, with the recipe of recipes/verl.

verl has no platform for CPUs; `use_cpu` gives it one, through the interface that verl has for other accelerators.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.plugin.platform import platform_manager
from verl.plugin.platform.platform_base import PlatformBase
from verl.utils import import_utils, tensordict_utils
from verl.utils.config import omega_conf_to_dataclass

from paths import ROOT

MODEL = ROOT / "src" / "ulorl" / "models" / "tiny" / "maze"
PROMPTS, OUTPUTS = (3, 5, 4, 2), (7, 4, 9, 6)  # tokens of each sample
REWARDS, ADVANTAGES = (1.0, 0.0, 1.0, 0.0), (0.7, -0.7, 0.7, -0.7)
TEMPERATURE, TAU, SIGMA = 0.8, 0.6, 0.7
SETTINGS = [
    "data.train_batch_size=2", "trainer.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=2",
    f"actor_rollout_ref.model.path={MODEL}", "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.model.use_remove_padding=false", "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "actor_rollout_ref.actor.strategy=fsdp2", "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1", "actor_rollout_ref.actor.use_dynamic_bsz=false",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
    f"actor_rollout_ref.actor.policy_loss.tau={TAU}", f"actor_rollout_ref.actor.policy_loss.sigma={SIGMA}",
]  # fmt: skip


@cache
@torch.no_grad()
def samples() -> tuple[list[Tensor], list[Tensor]]:
    """Return prompt and output of each sample, which the model draws, and log-probs of an old policy for them."""
    random = torch.Generator().manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    all_ids, old = [], []
    for prompt, output in zip(PROMPTS, OUTPUTS, strict=True):
        ids = torch.randint(2, model.config.vocab_size, (prompt,), generator=random)
        for _ in range(output):
            p_V = torch.softmax(model(ids[None]).logits[0, -1] / TEMPERATURE, dim=-1)
            ids = torch.cat([ids, torch.multinomial(p_V, 1, generator=random)])
        logits_TV = model(ids[None]).logits[0, prompt - 1 : -1] / TEMPERATURE
        logprobs_T = torch.log_softmax(logits_TV, dim=-1).gather(1, ids[prompt:, None])[:, 0]
        all_ids.append(ids)
        old.append(logprobs_T + 0.3 * torch.randn(output, generator=random))
    return all_ids, old


def batch() -> Any:
    """Return the samples as verl's trainer passes them to the worker (`PPOTrainer._update_actor`)."""

    def nested(parts: Any) -> Tensor:
        return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)

    all_ids, old = samples()
    rows = list(zip(all_ids, PROMPTS, OUTPUTS, REWARDS, ADVANTAGES, strict=True))
    masks = nested([torch.ones(t, dtype=torch.long) for t in OUTPUTS])
    columns = {
        "input_ids": nested([ids for ids, *_ in rows]),
        "position_ids": nested([torch.arange(len(ids)) for ids, *_ in rows]),
        "prompts": nested([ids[:p] for ids, p, *_ in rows]),
        "responses": nested([ids[p:] for ids, p, *_ in rows]),
        "response_mask": masks,
        "loss_mask": masks,
        "rm_scores": nested([torch.cat([torch.zeros(t - 1), torch.tensor([r])]) for _, _, t, r, _ in rows]),
        "advantages": nested([torch.full((t,), a) for _, _, t, _, a in rows]),
        "old_log_probs": nested(old),
    }
    facts = {
        "calculate_entropy": True, "distillation_use_topk": False, "distillation_only": False,
        "global_batch_size": len(rows), "mini_batch_size": len(rows), "epochs": 1, "seed": 1,
        "dataloader_kwargs": {"shuffle": False}, "temperature": TEMPERATURE,
    }  # fmt: skip
    return tensordict_utils.get_tensordict(columns, facts)


def use_cpu(patch: pytest.MonkeyPatch) -> None:
    """Let verl run on this CPU in one process, without torch.compile, and without what it needs of an old TRL."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    def no_range(*_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    no_memory = ["max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"]
    module = SimpleNamespace(
        **vars(torch.cpu), **dict.fromkeys(no_memory, lambda: 0),
        mem_get_info=lambda: (0, 0), get_device_name=lambda: "CPU",
    )  # fmt: skip
    members = dict.fromkeys(PlatformBase.__abstractmethods__, nothing) | {
        "device_name": "cpu", "vendor_name": "cpu", "device_module": module,
        "is_available": lambda _: True, "current_device": lambda _: "cpu", "device_count": lambda _: 1,
        "communication_backend_name": lambda _: "gloo", "visible_devices_envvar": lambda _: "CUDA_VISIBLE_DEVICES",
        "get_device_capability": lambda *_: (None, None), "nvtx_range": no_range,
        "ray_resource_name": lambda _: "CPU", "ray_noset_envvars": lambda _: [],
    }  # fmt: skip
    patch.setattr(platform_manager, "_current_platform", type("CpuPlatform", (PlatformBase,), members)())
    patch.setattr(import_utils, "is_trl_available", lambda: False)
    patch.setattr(torch, "compile", lambda function=None, **_: function or (lambda same: same))
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in (environment | {"VERL_ENGINE_DEVICE": "cuda"}).items():  # the engine for CUDA, on that platform
        patch.setenv(name, value)


def update(config: DictConfig) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Train on the batch with verl's worker, and return its metrics and the gradient of each weight.

    config: `actor_rollout_ref` of verl's configuration.
    """
    from verl.workers import engine_workers  # binds the loss that is installed

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        actor, model = omega_conf_to_dataclass(config.actor), omega_conf_to_dataclass(config.model)
        worker = engine_workers.TrainingWorker(
            engine_workers.TrainingWorkerConfig(
                model_type="language_model", model_config=model, engine_config=actor.engine,
                optimizer_config=actor.optim, checkpoint_config=actor.checkpoint,
            )
        )  # fmt: skip
        worker.engine_config.micro_batch_size_per_gpu = actor.ppo_micro_batch_size_per_gpu
        worker.engine_config.use_dynamic_bsz = actor.use_dynamic_bsz
        worker.reset()
        worker.set_loss_fn(partial(engine_workers.ppo_loss, config=actor))
        gradients, step = {}, worker.engine.optimizer_step

        def recording_step() -> Any:
            weights = worker.engine.module.named_parameters()
            gradients.update({name: weight.grad.full_tensor().clone() for name, weight in weights})
            return step()

        worker.engine.optimizer_step = recording_step
        output = worker.train_mini_batch(batch())
        metrics = tensordict_utils.get(output, "metrics")
        return {name: float(values[0]) for name, values in metrics.items()}, gradients
    finally:
        dist.destroy_process_group()
