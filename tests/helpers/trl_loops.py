"""Short trainings of the tiny maze model in TRL's loop, with what each gradient update saw and did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from ulorl.adapters.trl import UloRLConfig, UloRLTrainer
from ulorl.data.task_lookup import find_task
from ulorl.models.model_source import TINY_MAZE, ModelSource

SOURCE = ModelSource(TINY_MAZE)
SETTINGS: dict[str, Any] = {
    "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
    "disable_tqdm": True, "seed": 0, "max_steps": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
    "max_completion_length": 12, "temperature": 0.85, "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}  # fmt: skip
ARGUMENTS = ("rollout_func", "reward_funcs", "model", "args", "processing_class", "peft_config")


def even(completions: Sequence[str], **_: Any) -> list[float]:
    """The reward 1 for an even number of characters."""
    return [float(len(text) % 2 == 0) for text in completions]


@dataclass
class Update:
    """One gradient update: the weights before it, its micro-batches with their losses, and its gradient."""

    weights: dict[str, torch.Tensor]
    batches: list[dict[str, Any]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient: dict[str, torch.Tensor] = field(default_factory=dict)


class _Recorder(transformers.TrainerCallback):
    def __init__(self) -> None:
        self.updates: list[Update] = []

    def on_step_begin(self, *_: Any, model: Any, **__: Any) -> None:
        self.updates.append(Update({name: p.detach().clone() for name, p in model.named_parameters()}))

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.updates[-1].gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def build(kind: type[GRPOTrainer], **settings: Any) -> GRPOTrainer:
    """A trainer on mazes. settings: of the configuration; of the trainer where they are its arguments."""
    config = UloRLConfig if issubclass(kind, UloRLTrainer) else GRPOConfig
    own = {name: settings.pop(name) for name in ARGUMENTS if name in settings}
    mazes = find_task("maze").problems(8, 0)
    return kind(**{
        "model": SOURCE.location,
        "args": config(output_dir=str(Path.cwd()), **{**SETTINGS, **settings}),
        "train_dataset": Dataset.from_list([{"prompt": f"{maze}\n"} for maze in mazes]),
        "reward_funcs": even,
        **own,
    })  # fmt: skip


def train(kind: type[GRPOTrainer], **settings: Any) -> tuple[list[Update], list[dict[str, float]], GRPOTrainer]:
    """Train; returns the updates, what was logged after each, and the trainer."""
    recorder = _Recorder()

    class Recorded(kind):  # type: ignore[valid-type, misc]
        def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
            loss = super()._compute_loss(model, inputs)
            if model.training:
                recorder.updates[-1].batches.append(inputs)
                recorder.updates[-1].losses.append(float(loss.detach()))
            return loss

    trainer = build(Recorded, **settings)
    trainer.add_callback(recorder)
    trainer.train()
    return recorder.updates, [line for line in trainer.state.log_history if "loss" in line], trainer
