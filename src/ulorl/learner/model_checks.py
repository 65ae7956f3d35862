"""Checks the learner's assumptions about a model with two small passes: its head, and packed samples.

Shapes: B samples, S sequence, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError, one_line
from ulorl.learner.batching import Batch, Row, collate
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


def packed_samples_leak(forward: Callable[[Batch], tuple[Tensor, Tensor]], model: PreTrainedModel) -> bool:
    """Return whether the second sample of a packed row depends on the first sample's tokens.

    The answer is exact in any dtype: the gradient from the one to the other is 0 unless something connects them, such
    as a recurrent state or a convolution. forward: the policy's forward pass, of which every rank of a learner runs its
    part, and gets the answer for its part.
    """
    end, first = np.zeros(1, np.int32), np.arange(1, 6, dtype=np.int32)
    rows = [Row(part, end, end.astype(np.float32), end) for part in (first, first + len(first))]
    batch = collate(rows, 0, next(model.parameters()).device, "packed")
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept = output if output.requires_grad else output.detach().requires_grad_()
        kept.retain_grad()
        seen.append((inputs[0], kept))
        return kept

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logprobs_N, _ = forward(batch)
            logprobs_N[1].backward()  # type: ignore[no-untyped-call]
    finally:
        hook.remove()
    for parameter in model.parameters():
        parameter.grad = None
    ((input_ids_BS, embedded_BSH),) = seen
    assert embedded_BSH.grad is not None
    of_first_BS = torch.isin(input_ids_BS, torch.from_numpy(first).to(input_ids_BS.device))
    return bool(embedded_BSH.grad[of_first_BS].any())


def packing_error(model: PreTrainedModel) -> UserError:
    """Return the error for a model whose packed samples are not kept apart."""
    return UserError(
        f"optim.layout=packed: {type(model).__name__} lets a packed sample see the one before it; "
        "use optim.layout=padded",
        code=ErrorCode.MODEL_UNSUPPORTED,
        key="optim.layout",
    )
