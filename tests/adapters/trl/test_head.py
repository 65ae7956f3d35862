"""The head of the adapter gives TRL's log-probs, entropies and gradients."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from trl import GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from small_models import KINDS, V, make
from trl_loops import build
from ulorl.adapters.trl import UloRLTrainer
from ulorl.adapters.trl.tiled_head import use_tiled_head


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_gives_trls_log_probs_entropies_and_gradients(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(3, V, (3, 9), generator=rng)
    labels_BS = ids_BS.masked_fill(torch.rand(ids_BS.shape, generator=rng) < 0.4, -100)
    weights_BS = torch.randn(3, 8, generator=rng)
    found = []
    for patch in (add_fused_lm_head, use_tiled_head):
        model = make(kind).train()
        arguments = {"outputs": ("log_probs", "entropy")} if patch is add_fused_lm_head else {}
        patch(model, temperature=0.7, **arguments)
        out = model(input_ids=ids_BS, labels=labels_BS, fused_lm_head=True)
        (out.log_probs * weights_BS).sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((out.log_probs.detach(), out.entropy.detach(), grads))
    (theirs, their_entropy, their_grads), (ours, entropy, grads) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy, their_entropy, rtol=1e-5, atol=1e-5)
    assert grads.keys() == their_grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, their_grads[name], rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_the_head_without_a_scored_token_has_a_gradient_of_zeros() -> None:
    model = make("Qwen3")
    use_tiled_head(model, temperature=1.0)
    ids_BS = torch.ones(2, 5, dtype=torch.int64)
    out = model(input_ids=ids_BS, labels=torch.full_like(ids_BS, -100), fused_lm_head=True)
    out.log_probs.sum().backward()
    assert out.log_probs.abs().sum() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    assert model.lm_head.weight.grad is not None


def test_under_autocast_the_head_multiplies_in_bfloat16() -> None:
    model = make("Qwen3")
    use_tiled_head(model, temperature=1.0)
    ids_BS = torch.arange(3, 19)[None]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(input_ids=ids_BS, labels=ids_BS, fused_lm_head=True).log_probs
    exact = model(input_ids=ids_BS, labels=ids_BS, fused_lm_head=True).log_probs
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.3


def test_a_head_in_float32_stays_so_under_autocast() -> None:
    """As TRL's own head with `cast_lm_head_to_fp32`, and not as without it."""
    ids_BS = torch.arange(3, 19)[None]
    settings = {"bf16": True, "temperature": 1.0}
    found = []
    for kind, cast in ((GRPOTrainer, True), (UloRLTrainer, True), (UloRLTrainer, False)):
        trainer = build(kind, cast_lm_head_to_fp32=cast, **settings)
        logprobs_BT, entropy_BT, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids_BS, torch.ones_like(ids_BS), 8, compute_entropy=True
        )
        found.append(torch.stack([logprobs_BT, entropy_BT]).detach())
    theirs, ours, without = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert float((without - theirs).abs().max()) > 1e-3


def test_other_calls_of_the_model_are_unchanged() -> None:
    model = make("Qwen3").eval()
    ids_BS = torch.arange(3, 19)[None]
    before = model(input_ids=ids_BS, labels=ids_BS)
    use_tiled_head(model, temperature=0.5)
    after = model(input_ids=ids_BS, labels=ids_BS)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
