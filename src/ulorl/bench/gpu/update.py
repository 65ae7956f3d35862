"""The learner on the device: the same update as on a CPU, its options, and one sample of 131,072 tokens."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ulorl.bench.gpu.case import Case, CheckError, Figures, NotPossibleError, Setting, metered, require
from ulorl.bench.gpu.models import SHAPES, Shape, random_model
from ulorl.bench.learner_bench import long_group
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.errors import UserError
from ulorl.learner.experience import prepare
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.models.attention import FLASH, require_attention, set_attention
from ulorl.types import Group

LONG = 131_072
FALLING = ("Qwen3-8B", "Qwen3-4B", "Qwen3-1.7B", "Qwen3-0.6B")
MARGIN = 0.96  # of the free memory: the rest is fragmentation


def cases(setting: Setting) -> list[Case]:
    """Return the cases: parity with a CPU, each option, flash-attention where installed, and the long update."""
    return [
        Case("an update is that of a CPU, float32", partial(_like_a_cpu, setting)),
        Case("autocast, recompute, offload, bfloat16 weights", partial(_options, setting)),
        Case("flash-attention on packed samples", partial(_flash, setting)),
        Case("131,072 tokens, the largest Qwen3 that fits", partial(_long, setting)),
    ]


def _learner(model: PreTrainedModel, length: int, **optim: Any) -> PolicyLearner:
    return one_device_learner(
        model,
        LearnerSpec(
            optim=OptimConfig(**{"lr": 1e-3, "microbatch_tokens": length, **optim}),
            objective=ObjectiveConfig(dynamic_sampling=False),
            temperature=0.85,
            max_tokens=length,
            pad_id=0,
        ),
    )


def _groups(vocabulary: int) -> list[Group]:
    return [long_group(length, vocabulary) for length in (40, 57, 33)]


def _weights(learner: PolicyLearner) -> torch.Tensor:
    return torch.cat([tensor.detach().float().cpu().flatten() for _, tensor in learner.publish().tensors])


def _like_a_cpu(setting: Setting) -> Figures:
    """Make two updates on the device and on a CPU, from the same weights."""
    means, weights = [], []
    for device in ("cpu", setting.device):
        learner = _learner(random_model("small", dtype=torch.float32, device="cpu", positions=64).to(device), 64)
        for _ in range(2):
            update = learner.update(_groups(SHAPES["small"].vocabulary))
        means.append(update.means)
        weights.append(_weights(learner))
    figures: Figures = {
        "grad_norm": [mean["train/grad_norm"] for mean in means],
        "entropy": [mean["entropy/mean"] for mean in means],
        "weights_difference_max": float((weights[1] - weights[0]).abs().max()),
    }
    for name in ("grad_norm", "entropy"):
        require(
            bool(np.isclose(figures[name][1], figures[name][0], rtol=1e-3)), f"{name} differs from a CPU's", figures
        )
    # AdamW's first steps are lr * sign(gradient): an entry near 0 may move by 2 lr in the other direction
    far = float(((weights[1] - weights[0]).abs() > 1e-4).float().mean())
    require(far < 1e-3, f"{far:.2%} of the weights differ from a CPU's", figures)
    return figures


def _options(setting: Setting) -> Figures:
    """Make one update with each option, and compare its gradient with that of the plain one."""
    name, length = ("small", 64) if setting.small else ("Qwen3-0.6B", 2048)
    options: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
        "plain": (torch.float32, {}),
        "recompute": (torch.float32, {"recompute": True}),
        "autocast": (torch.float32, {"autocast": "bfloat16"}),
        "offload": (torch.float32, {"offload": True}),
        "bfloat16 weights": (torch.bfloat16, {"recompute": True}),
    }
    figures: Figures = {"model": name, "tokens": length}
    for option, (dtype, optim) in options.items():
        model = random_model(name, dtype=torch.float32, device=setting.device, positions=max(length, 64))
        for parameter in model.parameters():  # the same weights, rounded; not the buffers of positions
            parameter.data = parameter.data.to(dtype)
        learner = _learner(model, length, **optim)
        with metered(setting) as meter:
            update = learner.update([long_group(length, SHAPES[name].vocabulary)])
        found = {"grad_norm": update.means.get("train/grad_norm"), "entropy": update.means.get("entropy/mean")}
        figures[option] = {**found, "seconds": meter.seconds, "peak_bytes": meter.peak_bytes}
        del learner, model
    expected = figures["plain"]["grad_norm"]
    for option, (dtype, optim) in options.items():
        exact = dtype == torch.float32 and "autocast" not in optim
        found_norm = figures[option]["grad_norm"]
        close = found_norm is not None and bool(np.isclose(found_norm, expected, rtol=1e-3 if exact else 0.05))
        require(close, f"{option}: the gradient's norm differs from that without options", figures)
    return figures


def _flash(setting: Setting) -> Figures:
    """Compare log-probs of packed samples under flash-attention with those of padded samples under sdpa."""
    try:
        require_attention(FLASH, setting.device)
    except UserError as error:
        raise NotPossibleError(str(error)) from None
    name = "small" if setting.small else "Qwen3-0.6B"
    found = []
    for attention, layout in (("sdpa", "padded"), (FLASH, "packed")):
        model = random_model(name, dtype=torch.bfloat16, device=setting.device, positions=4096)
        set_attention(model, attention)
        learner = _learner(model, 4096, layout=layout)
        experience, _ = prepare(_groups(SHAPES[name].vocabulary), learner.spec.objective, 4096)
        found.append(np.concatenate(learner.score(experience)[0]))
    apart = np.abs(found[1] - found[0])
    figures: Figures = {"difference_mean": float(apart.mean()), "difference_max": float(apart.max())}
    require(figures["difference_mean"] < 0.05, "log-probs differ between flash-attention and sdpa", figures)
    return figures


@dataclass(frozen=True)
class Attempt:
    """A model and the way it is trained. precision: "float32" is with autocast to bfloat16, "bfloat16" the weights."""

    name: str
    precision: str
    offload: bool

    def needed_bytes(self, tokens: int) -> int:
        """Return an estimate of the device memory for one update on a sample of `tokens`: weights, gradients, moments;
        the input of each layer; one layer's activations; log-probs and the head's gradient."""
        shape, size = SHAPES[self.name], 4 if self.precision == "float32" else 2
        state = shape.parameters * size * (2 if self.offload else 4)
        inputs = shape.layers * tokens * shape.hidden * size
        head = (6 * tokens + 4 * shape.vocabulary) * shape.hidden
        return state + inputs + _layer_bytes(shape, tokens) + head


def _layer_bytes(shape: Shape, tokens: int) -> int:
    """Return the bytes of one layer's activations and their gradients, half as many again as the tensors themselves."""
    return 3 * tokens * (6 * shape.hidden + 6 * shape.heads * shape.head_dim + 3 * shape.intermediate)


def attempts(free: int, tokens: int) -> list[Attempt]:
    """Return what may fit into `free` bytes, the largest model first and for each the most exact way first."""
    ways = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]
    every = [Attempt(name, precision, offload) for name in FALLING for precision, offload in ways]
    return [attempt for attempt in every if attempt.needed_bytes(tokens) <= MARGIN * free]


def _long(setting: Setting) -> Figures:
    """Update on one long sample, with the largest model that the free memory holds."""
    if setting.small:
        return _one_long(setting, Attempt("small", "float32", offload=True), 512)
    if not setting.on_gpu:
        raise NotPossibleError("131,072 tokens need a GPU")
    free, _ = torch.cuda.mem_get_info()
    too_large: list[str] = []
    for attempt in attempts(free, LONG):
        try:
            return {"free_bytes": free, "out_of_memory": too_large, **_one_long(setting, attempt, LONG)}
        except torch.OutOfMemoryError as error:
            too_large.append(f"{attempt}: {str(error).splitlines()[0]}")
        gc.collect()  # outside of the handler, where the error's frames no longer keep the model
        torch.cuda.empty_cache()
    raise CheckError("no model fits", {"free_bytes": free, "out_of_memory": too_large})


def _one_long(setting: Setting, attempt: Attempt, tokens: int) -> Figures:
    dtype = getattr(torch, attempt.precision)
    autocast = "bfloat16" if attempt.precision == "float32" else "off"
    shape = SHAPES[attempt.name]
    model = random_model(attempt.name, dtype=dtype, device=setting.device, positions=tokens)
    learner = _learner(model, tokens, lr=1e-6, recompute=True, autocast=autocast, offload=attempt.offload)
    learner.update([long_group(64, shape.vocabulary)])  # makes the moments, and loads kernels
    with metered(setting) as meter:
        update = learner.update([long_group(tokens, shape.vocabulary)])
    attention = 9 * tokens**2 * shape.heads * shape.head_dim * shape.layers
    operations = 8 * shape.parameters * tokens + attention
    figures: Figures = {
        "model": attempt.name,
        "weights": attempt.precision,
        "offload": attempt.offload,
        "tokens": tokens,
        "parameters": shape.parameters,
        "seconds": meter.seconds,
        "tflops": round(operations / meter.seconds / 1e12, 3),
        "attention_share": round(attention / operations, 3),
        "peak_bytes": meter.peak_bytes,
        "estimated_bytes": attempt.needed_bytes(tokens),
        "grad_norm": update.means.get("train/grad_norm"),
    }
    require(update.steps == 1, f"the update was skipped: {update.skipped}", figures)
    return figures
