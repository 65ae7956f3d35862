"""Checks the learner's assumptions about a model with two small passes: its head, and packed samples.

Shapes: B samples, S sequence, H hidden.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.learner.batching import Row, collate
from ulorl.learner.logprobs import head_logits
from ulorl.models.head import head_of, hidden_states


@torch.no_grad()
def check_head(model: PreTrainedModel, *, cpu_kernels: bool = True) -> None:
    """Check with a small forward pass that `hidden_states` and `head_of` give the model's own logits, multiplied as
    training multiplies them.

    Raises:
        UserError: the model computes its logits in another way; training it would use wrong log-probs.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = torch.arange(1, 9, device=model.device)[None] * 7919 % vocabulary
    try:
        expected = model(input_ids=input_ids, use_cache=False).logits[0].float()
        hidden = hidden_states(model, input_ids, None, None)[0]
    except Exception as error:  # sizes in config.json that no weight's shape shows
        raise UserError(
            f"{type(model).__name__}: cannot be run as its config.json says ({one_line(error)})",
            code=ErrorCode.MODEL_CONFIG,
        ) from error
    found = head_logits(head_of(model), hidden, cpu_kernels=cpu_kernels).float()
    tolerance = 1e-4 if expected.dtype == hidden.dtype else 3e-2  # bf16 models round their logits to 8 bits
    size = float(expected.abs().max())
    apart = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not apart <= tolerance * max(size, 1e-6):
        raise UserError(
            f"{type(model).__name__}: its logits are not weight @ hidden with the scale, bias or soft-cap we know "
            f"(they differ by {apart:.3g}, the largest is {size:.3g}); this model cannot be trained yet",
            code=ErrorCode.MODEL_UNSUPPORTED,
        )


def check_packing(model: PreTrainedModel, *, autocast: bool) -> None:
    """Check that in a packed row the second sample's hidden states do not depend on the first sample's tokens.

    The check is exact in any dtype: the gradient from the one to the other is 0 unless something connects them.

    Raises:
        UserError: the model carries something from a sample to the next (a recurrent state, a convolution).
    """
    ids = (np.arange(1, 13, dtype=np.int32) * 7919) % model.get_input_embeddings().weight.shape[0]
    end = np.zeros(1, np.int32)
    rows = [Row(part, end, end.astype(np.float32), end) for part in (ids[:5], ids[5:])]
    batch = collate(rows, 0, model.device, "packed")
    embedded: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            hidden_SH = hidden_states(model, batch.input_ids, None, batch.position_ids)[0]
    finally:
        hook.remove()
    second_SH = hidden_SH[len(rows[0]) :].float()
    # uneven, because the plain sum of squares is constant after a norm
    uneven_H = torch.linspace(-1, 1, second_SH.shape[1], device=model.device)
    (grad_BSH,) = torch.autograd.grad((second_SH * uneven_H).sum(), embedded[0])
    if grad_BSH[0, : len(rows[0])].any():
        raise UserError(
            f"optim.layout=packed: {type(model).__name__} lets a packed sample see the one before it; "
            "use optim.layout=padded",
            code=ErrorCode.MODEL_UNSUPPORTED,
            key="optim.layout",
        )
