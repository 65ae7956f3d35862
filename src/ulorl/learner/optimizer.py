"""AdamW over the trainable parameters of a model; its moments are beside the parameters or in the CPU's memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from ulorl.config.training_config import OptimConfig
from ulorl.learner.sharded_state import shard_of


class Optimizer:
    """AdamW with linear warm-up, then a constant learning rate (section 4.1).

    named: trainable parameters by name. Of sharded ones, each rank steps its own part. With `optim.offload` the moments
    are kept on the CPU and the step is made there, on copies of weights and gradients. This saves 8 bytes for each
    float32 parameter on the device, and costs one transfer of weights and gradients to the CPU and one of weights back.
    The arithmetic is the same.
    """

    def __init__(self, named: Mapping[str, Parameter], optim: OptimConfig) -> None:
        self.updates = 0  # steps made; drives the warm-up
        self._optim = optim
        self._named = dict(named)
        self._stepped = {name: self._to_step(p) for name, p in named.items()}  # what AdamW works on
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

    def _to_step(self, parameter: Parameter) -> Parameter:
        if self._optim.offload:
            return Parameter(torch.empty_like(_local(parameter), device="cpu"))
        return Parameter(_local(parameter.detach())) if isinstance(parameter, DTensor) else parameter

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
        apart = {name: p for name, p in self._stepped.items() if p is not self._named[name]}
        for name, own in apart.items():
            live = self._named[name]
            if self._optim.offload:
                own.copy_(_local(live))  # at every step, because the weights may have been changed since
            own.grad = None if live.grad is None else _local(live.grad).to(own.device)
        self._adamw.step()
        for name, own in apart.items():
            if self._optim.offload:
                _local(self._named[name]).copy_(own)
            own.grad = None
        self.updates += 1
        return lr

    def state(self) -> dict[str, Tensor]:
        """Return the moments by parameter name, and the count of updates. The moments share the optimizer's memory, and
        are sharded like their parameters."""
        state = {
            f"{name}/{key}": _sharded_like(value, self._named[name])
            for name, p in self._stepped.items()
            for key, value in self._adamw.state[p].items()
        }
        return {**state, "updates": torch.tensor(self.updates)}

    def empty_state(self) -> dict[str, Tensor]:
        """Return `state` after at least one step with zeros in place of the moments, to be filled by `load_sharded`."""
        state = {}
        for name, stepped in self._stepped.items():
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{name}/{key}"] = _sharded_like(torch.zeros_like(stepped), self._named[name])
            state[f"{name}/step"] = torch.tensor(0.0)
        return state

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state` returned, of an optimizer with offloading or without."""
        for key, value in tensors.items():
            if key == "updates":
                self.updates = int(value)
                continue
            name, _, slot = key.rpartition("/")
            parameter = self._stepped[name]
            self._adamw.state[parameter][slot] = _local(value).to(parameter.device)  # fused: `step` too


def gradient_norm(parameters: Iterable[Parameter], largest: float) -> float:
    """Return the norm of all gradients together, and scale them down to the norm `largest` when it is above."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, largest)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of a moment as a part of the whole; what is no moment, or not sharded, as it is."""
    return shard_of(value, parameter) if isinstance(parameter, DTensor) and value.ndim else value
