"""Ulysses sequence parallelism: the processes of a group share every sequence (Jacobs et al. 2023, arXiv:2309.14509).

Each process computes its part of the sequence. Only attention needs the whole one: an all-to-all exchange gives each
process the whole sequence of some of the heads, and a second exchange returns the results to the parts.

Shapes: B samples, S sequence, s of it in one process, N output tokens of a batch, n of them in one process, P processes
of the group, q and k heads of queries and of keys and values, D head dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.batching import Batch
from ulorl.learner.ulysses_checks import check_ulysses
from ulorl.models.attention import FLASH, Overlay, kernel_name, set_attention

_PASSED = ("scaling", "is_causal", "sliding_window", "softcap")  # the arguments that the kernel needs
_LEFT_OUT = ("position_ids", "cache_position")  # tensors of one part that it does not need; others are refused
_numbers = itertools.count()


@dataclass(frozen=True, eq=False)
class BatchPart:
    """One process's part of a batch: s consecutive positions of every row, and the n tokens that they predict.

    A model runs on `input_ids` and `position_ids` as on those of a `Batch`. The sequence is padded on the right to a
    multiple of the processes; n can be 0.
    """

    input_ids: Tensor  # int64 [B, s]
    position_ids: Tensor  # int64 [B, s]: positions in the whole sample
    source_N: Tensor  # int64 [n]: the row of this part's hidden.view(B * s, H) that predicts the token
    targets_N: Tensor  # int64 [n]: the output tokens
    index_N: Tensor  # int64 [n]: the places of the tokens among the batch's N tokens
    tokens: int  # N


class SequenceShards:
    """Splits every sequence of one model over the processes of a group, with the sdpa or flash-attention kernel.

    The processes must hold the same batches in the same order, and run every forward and backward pass together. The
    gradients of parameters are each process's contribution: their sum over the group is the whole gradient. The
    backward pass of a batch comes before the next `split`, because it may recompute the attention of that batch.

    model: all its attention layers run through this object from now on; other models are not touched. group: the
    processes. attention: the kernel for the heads of one process, sdpa or flash_attention_2.
    Raises UserError when the model's attention cannot be split (`check_ulysses`).
    """

    def __init__(self, model: PreTrainedModel, group: dist.ProcessGroup, attention: str) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)
        check_ulysses(model, self.size, attention)
        self.attention = attention
        self._kernel: Callable[..., tuple[Tensor, None]] = AttentionInterface()[kernel_name(attention)]
        self._borders: list[int] | None = None  # of the samples of a packed row
        # A name of its own: transformers finds the function by the name in the model's configuration. For a name
        # without a mask function it makes no mask, which would be one of this process's positions only.
        name = f"ulysses-{next(_numbers)}"
        AttentionInterface.register(name, torch.compiler.disable(self.attend))  # type: ignore[no-untyped-call]
        set_attention(model, name)

    def split(self, batch: Batch) -> BatchPart:
        """Return this process's part of a batch, and make it the batch that the model runs next."""
        length = batch.input_ids.shape[1]
        self._borders = _borders(batch.position_ids, self.size)
        part = -(-length // self.size)
        mine = slice(self.rank * part, (self.rank + 1) * part)
        padding = (0, part * self.size - length)
        row_N, position_N = batch.source_N // length, batch.source_N % length
        (index_N,) = (position_N // part == self.rank).nonzero(as_tuple=True)
        return BatchPart(
            input_ids=pad(batch.input_ids, padding)[:, mine].contiguous(),
            position_ids=pad(batch.position_ids, padding)[:, mine].contiguous(),
            source_N=(row_N * part + position_N % part)[index_N],
            targets_N=batch.targets_N[index_N],
            index_N=index_N,
            tokens=len(batch.targets_N),
        )

    def gather(self, part: BatchPart, logprobs_N: Tensor, entropy_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probs and entropies of all N tokens of a batch, in its order, with gradient where they have
        one.

        logprobs_N, entropy_N: those of this part's tokens [n]. The gradient that returns to them is the slice of the
        whole one, not the sum over the processes, each of which computes the loss of the whole batch.
        """
        gathered: tuple[Tensor, Tensor] = _Gather.apply(  # type: ignore[no-untyped-call]
            logprobs_N, entropy_N, part.index_N, part.tokens, self.group
        )
        return gathered

    def attend(
        self,
        module: torch.nn.Module,
        query_BqsD: Tensor,
        key_BksD: Tensor,
        value_BksD: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        """Compute causal attention over the whole sequence for this process's part [B, s, q, D]; transformers calls it.

        Padding is on the right, where causal attention never looks; samples of a packed row do not see each other.
        Raises UserError for a mask or another tensor that only covers this process's part.
        """
        tensors = {"attention_mask": attention_mask, **arguments}
        if unknown := [k for k, v in tensors.items() if isinstance(v, Tensor) and k not in _LEFT_OUT]:
            raise UserError(
                f"optim.sequence_parallel={self.size}: {type(module).__name__} gives its attention {unknown[0]}, which "
                "cannot be split; use optim.sequence_parallel=1",
                code=ErrorCode.MODEL_UNSUPPORTED,
                key="optim.sequence_parallel",
            )
        if key_BksD.shape[1] < self.size:  # one head for each process
            repeats = self.size // key_BksD.shape[1]
            key_BksD, value_BksD = (x.repeat_interleave(repeats, dim=1) for x in (key_BksD, value_BksD))
        heads = [self._exchange(x, split=1, join=2) for x in (query_BqsD, key_BksD, value_BksD)]
        called = Overlay(
            module,
            num_key_value_groups=heads[0].shape[1] // heads[1].shape[1],
            config=Overlay(module.config, _attn_implementation=self.attention),  # flash-attention looks it up
        )
        passed = {name: arguments[name] for name in _PASSED if arguments.get(name) is not None}
        output_BSqD = self._attend_whole(called, heads, passed | {"dropout": dropout})
        return self._exchange(output_BSqD, split=1, join=2), None

    def _attend_whole(self, module: Any, heads: list[Tensor], arguments: dict[str, Any]) -> Tensor:
        """Run the kernel on whole sequences of this process's heads [B, q / P, S, D]; return [B, S, q / P, D]."""
        if self._borders is None:
            return self._kernel(module, *heads, None, **arguments)[0]
        lengths = [end - start for start, end in itertools.pairwise(self._borders)]
        if self.attention == FLASH:
            borders = torch.tensor(self._borders, dtype=torch.int32, device=heads[0].device)
            arguments |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
            arguments |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
            return self._kernel(module, *heads, None, **arguments)[0]
        samples = zip(*(torch.split(x, lengths, dim=2) for x in heads), strict=True)
        return torch.cat([self._kernel(module, *sample, None, **arguments)[0] for sample in samples], dim=1)

    def _exchange(self, x: Tensor, *, split: int, join: int) -> Tensor:
        exchanged: Tensor = _Exchange.apply(x, split, join, self)  # type: ignore[no-untyped-call]
        return exchanged


def _borders(position_ids_BS: Tensor, size: int) -> list[int] | None:
    """Return where the samples of a packed row start and end, its padding to a multiple of `size` in the last one; None
    for rows of one sample each."""
    (starts,) = (position_ids_BS[0].diff() != 1).nonzero(as_tuple=True)
    if not len(starts) or len(position_ids_BS) > 1:
        return None
    length = position_ids_BS.shape[1]
    return [0, *(starts + 1).tolist(), -(-length // size) * size]


def _exchanged(x: Tensor, split: int, join: int, group: dist.ProcessGroup) -> Tensor:
    """Cut dimension `split` into one part for each process, send them, and join the received ones in `join`."""
    sent = torch.unflatten(x, split, (dist.get_world_size(group), -1)).movedim(split, 0).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.movedim(0, join).flatten(join, join + 1)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: int, join: int, shards: SequenceShards) -> Tensor:
        ctx.split, ctx.join, ctx.shards, ctx.borders = split, join, shards, shards._borders
        return _exchanged(x, split, join, shards.group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.borders is not ctx.shards._borders:  # recomputed attention had the borders of another batch
            raise RuntimeError("split was called for another packed batch before the backward pass of this one")
        return _exchanged(grad, ctx.join, ctx.split, ctx.shards.group), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logprobs_N: Tensor, entropy_N: Tensor, index_N: Tensor, tokens: int, group: dist.ProcessGroup
    ) -> tuple[Tensor, Tensor]:
        # Each token is computed by one process and 0 in the others, so the sum is exact, and needs no counts.
        both_2N = logprobs_N.new_zeros(2, tokens)
        both_2N[0, index_N], both_2N[1, index_N] = logprobs_N, entropy_N
        dist.all_reduce(both_2N, group=group)
        ctx.save_for_backward(index_N)
        gathered_N, entropies_N = both_2N.unbind()
        entropies_N = entropies_N.clone()
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(entropies_N)
        return gathered_N.clone(), entropies_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor, to_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        (index_N,) = ctx.saved_tensors
        return grad_N[index_N], to_entropy_N[index_N] if ctx.needs_input_grad[1] else None, None, None, None
