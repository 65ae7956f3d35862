"""The model with its head as one module: log-probs and entropies of a batch's output tokens in one forward pass.

FSDP2 gathers and frees parameters around the forward pass of a module, so whatever reads a parameter, the head
included, happens inside `Policy.forward`, on one device and on many.

Shapes: B samples, S sequence, N output tokens of a batch, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from ulorl.learner.batching import Batch
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.model_checks import check_head
from ulorl.learner.ulysses import BatchPart, SequenceShards
from ulorl.models.head import head_of, hidden_states


class Policy(nn.Module):
    """A causal language model whose forward pass returns log-probs and entropies, [N] each.

    temperature: log-probs and entropies are those of softmax(logits / temperature). autocast: multiply in bfloat16 with
    float32 weights. cpu_kernels: multiply through oneDNN where that is faster on a CPU. shards: splits sequences over
    the ranks that share them; None: this rank computes whole ones. entropy_gradient: whether the entropies have a
    gradient too.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        *,
        autocast: bool,
        cpu_kernels: bool,
        shards: SequenceShards | None = None,
        entropy_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.shards = model, shards
        self.temperature, self.autocast, self.cpu_kernels = temperature, autocast, cpu_kernels
        self.entropy_gradient = entropy_gradient
        self.training = False  # of this module only: dropout is off, and recomputed layers have their own setting

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log-probs (with gradient) and entropies of the micro-batch's output tokens, [N] each.

        The entropies have a gradient only with `entropy_gradient`: otherwise nothing is computed for it.
        """
        if self.shards is None:
            return self._token_logprobs(batch)
        part = self.shards.split(batch)
        return self.shards.gather(part, *self._token_logprobs(part))

    def _token_logprobs(self, batch: Batch | BatchPart) -> tuple[Tensor, Tensor]:
        # No mask: padding is on the right, where causal attention never looks, and a mask would take S x S memory.
        # transformers separates packed samples by their positions (models/attention.py).
        # No cache of autocast: it would hold a bfloat16 copy of all weights, each of which is used once.
        with torch.autocast(batch.input_ids.device.type, torch.bfloat16, enabled=self.autocast, cache_enabled=False):
            hidden_BSH = hidden_states(self.model, batch.input_ids, None, batch.position_ids)
        hidden_NH, head = hidden_BSH.flatten(0, 1)[batch.source_N], head_of(self.model)
        if self.autocast:  # the last norm gives float32: the head, a tenth of a model's arithmetic, would be too
            hidden_NH, head = hidden_NH.bfloat16(), replace(head, weight_VH=head.weight_VH.bfloat16())
        return token_logprobs(
            hidden_NH, head, batch.targets_N, self.temperature,
            cpu_kernels=self.cpu_kernels, entropy_gradient=self.entropy_gradient,
        )  # fmt: skip

    def check_head(self) -> None:
        """Check that the head gives the model's own logits (`model_checks.check_head`)."""
        check_head(self.model, cpu_kernels=self.cpu_kernels)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def free_gathered(self) -> None:
        """Free the whole parameters that a forward pass without a backward pass leaves on a sharded model."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
