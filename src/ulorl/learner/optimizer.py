"""AdamW over the trainable parameters of a model; its moments are beside the parameters or in the CPU's memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import Parameter

from ulorl.config.training_config import OptimConfig


class Optimizer:
    """AdamW with linear warm-up, then a constant learning rate (section 4.1).

    named: trainable parameters by name. With `optim.offload` the moments are kept on the CPU and the step is made
    there, on copies of weights and gradients. This saves 8 bytes for each float32 parameter on the device, and costs
    one transfer of weights and gradients to the CPU and one of weights back. The arithmetic is the same. One device
    only.
    """

    def __init__(self, named: Mapping[str, Parameter], optim: OptimConfig) -> None:
        self.updates = 0  # steps made; drives the warm-up
        self._optim = optim
        self._named = dict(named)
        self._stepped = self._named  # what AdamW works on
        if optim.offload:
            self._stepped = {name: Parameter(torch.empty_like(p, device="cpu")) for name, p in named.items()}
        self._adamw = torch.optim.AdamW(
            self._stepped.values(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next optimizer step."""
        return self._optim.lr * min(1.0, (self.updates + 1) / max(1, self._optim.warmup_steps))

    def zero_grad(self) -> None:
        """Drop the gradients and release their memory."""
        for parameter in self._named.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> float:
        """Update the weights with their gradients. Return the learning rate."""
        lr = self.learning_rate
        for group in self._adamw.param_groups:
            group["lr"] = lr
        if self._optim.offload:
            for name, copy in self._stepped.items():
                live = self._named[name]
                copy.copy_(live)  # at every step, because the weights may have been changed since
                copy.grad = None if live.grad is None else live.grad.cpu()
        self._adamw.step()
        if self._optim.offload:
            for name, copy in self._stepped.items():
                self._named[name].copy_(copy)
                copy.grad = None
        self.updates += 1
        return lr

    def state(self) -> dict[str, torch.Tensor]:
        """Return the moments by parameter name, and the count of updates. The moments share the optimizer's memory."""
        state = {f"{name}/{key}": v for name, p in self._stepped.items() for key, v in self._adamw.state[p].items()}
        return {**state, "updates": torch.tensor(self.updates)}

    def save(self, path: Path) -> None:
        """Write `state` as safetensors."""
        save_file(self.state(), path)

    def load(self, path: Path) -> None:
        """Load what `save` wrote, with offloading or without; the weights are loaded with the model."""
        tensors = load_file(path)
        self.updates = int(tensors.pop("updates"))
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            parameter = self._stepped[name]
            self._adamw.state[parameter][slot] = value.to(parameter.device)  # fused: `step` too
