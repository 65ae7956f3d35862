"""Sequences that several processes share, against one process: gloo on CPU, flash-attention with its kernel in torch.

Shapes: B samples, S sequence, s of it in one process, N output tokens, n of them in one process, H hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel, modeling_flash_attention_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from processes import run_processes
from small_models import V, make
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.batching import Batch, Layout, Row, collate
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.ulysses import BatchPart, SequenceShards
from ulorl.models.head import head_of, hidden_states
from ulorl.models.model_loading import recompute_activations
from ulorl.types import Request, Sampling

pytestmark = pytest.mark.slow

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 6, "head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 8, "first_k_dense_replace": 1,
}  # fmt: skip
MIXED = ((3, 8), (2, 5), (4, 1))  # prompt and output tokens of each sample
ROWS = {"ends": ((30, 3),), "shorter than the group": ((1, 2),), "multiple": ((4, 12), (8, 8)), "single": ((1, 1),) * 3}


@dataclass(frozen=True)
class Case:
    """One model and one batch that processes share."""

    kind: str
    processes: int
    layout: Layout = "padded"
    recompute: bool = False
    attention: str = "sdpa"
    rows: tuple[tuple[int, int], ...] = MIXED
    settings: dict[str, Any] = field(default_factory=dict)

    def model(self) -> PreTrainedModel:
        model = make(self.kind, num_attention_heads=4, **{"num_key_value_heads": 2, **self.settings}).eval()
        if self.attention != "sdpa":
            model.config._attn_implementation = self.attention  # past the checks for a GPU
        if self.recompute:
            recompute_activations(model)
        return model

    def batch(self) -> Batch:
        random = np.random.default_rng(0)

        def tokens(count: int) -> np.ndarray:
            return random.integers(1, V, count).astype(np.int32)

        zeros = [np.zeros(n, np.int32) for _, n in self.rows]
        rows = [Row(tokens(p), tokens(n), z.astype(np.float32), z) for (p, n), z in zip(self.rows, zeros, strict=True)]
        return collate(rows, 0, "cpu", self.layout)


LAYOUTS: tuple[Layout, ...] = ("padded", "packed")
MATRIX = [
    Case(kind, processes, layout, recompute, settings={"num_key_value_heads": kv, "tie_word_embeddings": tied})
    for kind, tied in (("Qwen3", True), ("Llama", False), ("Qwen3Moe", False))
    for processes, layout, (kv, recompute) in itertools.product((2, 4), LAYOUTS, ((1, False), (2, True), (4, False)))
]
OTHERS = [
    *(Case("Qwen3", p, layout, rows=rows) for rows in ROWS.values() for p in (2, 4) for layout in LAYOUTS),
    *(Case("Qwen3", 4, layout, True, settings={"rope_parameters": YARN}) for layout in LAYOUTS),
    *(Case(kind, 4, layout, True) for kind in ("Qwen2", "Granite", "Cohere", "Phi", "StableLm") for layout in LAYOUTS),
    *(Case("DeepseekV3", p, layout, settings=MLA) for p in (2, 4) for layout in LAYOUTS),
    *(Case("Qwen3", p, layout, True, "flash_attention_2") for p in (2, 4) for layout in LAYOUTS),
    *(
        Case("Qwen3", 2, layout, attention="flash_attention_2",
             settings={"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1})
        for layout in LAYOUTS
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Result:
    hidden_BsH: Tensor
    logprobs_N: Tensor
    entropy_N: Tensor
    gradients: dict[str, Tensor]


@cache
def group_of(processes: int) -> dist.ProcessGroup:
    starts = range(0, dist.get_world_size(), processes)
    groups = [dist.new_group(list(range(start, start + processes))) for start in starts]
    return groups[dist.get_rank() // processes]


def compute(model: PreTrainedModel, batch: Batch, shards: SequenceShards | None = None) -> Result:
    """One forward and backward pass of a loss that weighs every token differently."""
    part: Batch | BatchPart = shards.split(batch) if shards else batch
    hidden_BsH = hidden_states(model, part.input_ids, None, part.position_ids)
    hidden_nH = hidden_BsH.flatten(0, 1)[part.source_N]
    logprobs_N, entropy_N = token_logprobs(hidden_nH, head_of(model), part.targets_N, 0.85, cpu_kernels=False)
    if isinstance(part, BatchPart):
        logprobs_N, entropy_N = shards.gather(part, logprobs_N, entropy_N)
    weights_N = torch.linspace(-1, 2, len(logprobs_N), dtype=logprobs_N.dtype)
    (logprobs_N.exp() * weights_N).sum().backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    if shards:
        dist.all_reduce(flat, group=shards.group)
    summed = flat.split([grad.numel() for grad in grads])
    gradients = {name: grad for (name, _), grad in zip(model.named_parameters(), summed, strict=True)}
    return Result(hidden_BsH.detach(), logprobs_N.detach(), entropy_N, gradients)


def differences(case: Case) -> Iterator[str]:
    batch, model = case.batch(), case.model()
    expected = compute(case.model(), batch)
    shards = SequenceShards(model, group_of(case.processes), case.attention)
    found = compute(model, batch, shards)
    length, part = batch.input_ids.shape[1], found.hidden_BsH.shape[1]
    start = min(shards.rank * part, length)
    pairs = {
        "hidden": (found.hidden_BsH[:, : length - start], expected.hidden_BsH[:, start : start + part]),
        "log-probs": (found.logprobs_N, expected.logprobs_N),
        "entropy": (found.entropy_N, expected.entropy_N),
    }
    pairs |= {name: (found.gradients[name], gradient) for name, gradient in expected.gradients.items()}
    for name, (a, b) in pairs.items():
        if not torch.allclose(a, b, rtol=1e-4, atol=2e-5 * max(1.0, b.abs().max().item() if b.numel() else 0)):
            yield f"{case}, rank {shards.rank}: {name} differs by {(a - b).abs().max():.3g} of {b.abs().max():.3g}"


@contextmanager
def flash_in_torch() -> Iterator[None]:
    """flash-attn's functions in plain torch, for transformers' own code around them."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int]) -> Tensor:
        at = torch.arange(q.shape[1])
        seen = at[:, None] >= at
        if window[0] >= 0:
            seen &= at[:, None] - at <= window[0]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(1, 2)

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size=(-1, -1), **_: object) -> Tensor:
        assert causal
        return attend(q, k, v, window_size)

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, max_seqlen_q: int, causal: bool,
        window_size=(-1, -1), **_: object,
    ) -> Tensor:  # fmt: skip
        assert causal
        assert max_seqlen_q == cu_seqlens_q.diff().max()
        assert cu_seqlens_q[-1] == len(q)
        parts = itertools.pairwise(cu_seqlens_q.tolist())
        return torch.cat([attend(q[None, a:b], k[None, a:b], v[None, a:b], window_size)[0] for a, b in parts])

    kernels = (flash_attn_func, flash_attn_varlen_func, None, None, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: kernels)
        patch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
        yield


def leaks(processes: int, recompute: bool) -> Iterator[str]:
    """The gradient of the second sample's log-probs with respect to the first sample's embeddings is exactly 0."""
    case = Case("Qwen3", processes, "packed", recompute, rows=((3, 3), (2, 6)))
    model, batch = case.model(), case.batch()
    shards = SequenceShards(model, group_of(processes), "sdpa")
    part = shards.split(batch)
    embedded: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.get_input_embeddings().register_forward_hook(keep)
    hidden_nH = hidden_states(model, part.input_ids, None, part.position_ids).flatten(0, 1)[part.source_N]
    logprobs_N, _ = shards.gather(part, *token_logprobs(hidden_nH, head_of(model), part.targets_N, 1.0))
    (grad_BsH,) = torch.autograd.grad(logprobs_N[batch.sample_N == 1].sum(), embedded[0])
    first_s = part.position_ids.new_tensor(range(14)).lt(6)[shards.rank * grad_BsH.shape[1] :][: grad_BsH.shape[1]]
    reached = grad_BsH[0].abs().sum(-1)
    if reached[: len(first_s)][first_s].any():
        yield f"{case}, rank {shards.rank}: the second sample sees the first"
    if not reached[: len(first_s)][~first_s][:-1].all():
        yield f"{case}, rank {shards.rank}: the second sample does not see itself"


def changes_of_other_models() -> Iterator[str]:
    """Another model and an embedded engine in the same process compute the same, bit by bit."""
    case = Case("Qwen3", 4)
    batch, other, engine = case.batch(), case.model(), TorchEngine(case.model(), eos_ids=(), slots=2, prefill_tokens=64)

    def outcome() -> tuple[Tensor, list[int]]:
        prompt = batch.input_ids[0, :5].numpy().astype(np.int32)
        engine.add(Request(0, prompt, 12, Sampling(temperature=0.0), 0))
        segments = [segment for _ in range(12) for segment in engine.step()]
        hidden = hidden_states(other, batch.input_ids, None, batch.position_ids).detach()
        return hidden, segments[0].tokens.tolist()

    before, registered = outcome(), set(AttentionInterface())
    model = case.model()
    functions = {name: AttentionInterface()[name] for name in registered}
    shards = SequenceShards(model, group_of(4), "sdpa")
    compute(model, batch, shards)
    after = outcome()
    if not torch.equal(before[0], after[0]) or before[1] != after[1]:
        yield f"rank {dist.get_rank()}: another model or the engine computes something else"
    if other.config._attn_implementation != "sdpa" or any(AttentionInterface()[n] != f for n, f in functions.items()):
        yield f"rank {dist.get_rank()}: attention functions of transformers were replaced"
    if model.config._attn_implementation in ALL_MASK_ATTENTION_FUNCTIONS:
        yield "transformers would make a mask"


def wrong_answers_to_masks() -> Iterator[str]:
    """A mask of one part would be wrong: it is refused, before any process waits for another."""
    case = Case("Llama", 4)
    model, batch = case.model(), case.batch()
    part = SequenceShards(model, group_of(4), "sdpa").split(batch)
    mask = torch.ones(len(part.input_ids), 1, part.input_ids.shape[1], part.input_ids.shape[1], dtype=torch.bool)
    try:
        hidden_states(model, part.input_ids, mask, part.position_ids)
    except UserError as error:
        if (error.code, error.key) == (ErrorCode.MODEL_UNSUPPORTED, "optim.sequence_parallel"):
            return
    yield "a mask of one part was not refused"


def wrong_answers_to_a_late_backward() -> Iterator[str]:
    """Recomputed attention would take the borders of the next batch."""
    case = Case("Llama", 4, "packed", recompute=True)
    model, batch = case.model(), case.batch()
    shards = SequenceShards(model, group_of(4), "sdpa")
    part = shards.split(batch)
    hidden = hidden_states(model, part.input_ids, None, part.position_ids)
    shards.split(batch)
    try:
        hidden.sum().backward()
    except RuntimeError as error:
        if "before the backward pass" in str(error):
            return
    yield "a backward pass after the next split was not refused"


def bfloat16_problems() -> Iterator[str]:
    case = Case("Qwen3", 4, "packed")
    expected = compute(case.model().bfloat16(), case.batch())
    model = case.model().bfloat16()
    found = compute(model, case.batch(), SequenceShards(model, group_of(4), "sdpa"))
    if (found.logprobs_N - expected.logprobs_N).abs().max() > 0.15:
        yield f"bfloat16: log-probs differ by {(found.logprobs_N - expected.logprobs_N).abs().max()}"


def everything(cases: list[Case]) -> list[str]:
    with flash_in_torch():
        failures = [difference for case in cases for difference in differences(case)]
    for processes, recompute in itertools.product((2, 4), (False, True)):
        failures += leaks(processes, recompute)
    for problems in (wrong_answers_to_masks, wrong_answers_to_a_late_backward, bfloat16_problems):
        failures += problems()
    return [*failures, *changes_of_other_models()]


def test_shared_sequences_give_the_results_of_one_process() -> None:
    """Hidden states, log-probs, entropies and gradients; what samples and other models see; all in one start of four
    processes, which form two groups of two or one of four."""
    results = run_processes(everything, 4, [*MATRIX, *OTHERS], timeout=240)
    failures = [failure for rank in results for failure in rank]
    assert not failures, "\n".join(failures[:20])
