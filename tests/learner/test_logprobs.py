"""Tiled log-probs and entropies against the plain computation on whole logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dense_heads import HEADS, leaves, make, naive
from ulorl.learner.logprobs import head_logits, token_logprobs
from ulorl.models.head import Head


def test_by_hand() -> None:
    # One token over three words, logits (ln 2, 0, ln 5) * temperature 1: p = 2/8, 1/8, 5/8.
    # log p(word 0) = ln .25; H = .25 ln 4 + .125 ln 8 + .625 ln 1.6 = .346574 + .259930 + .293752 = .900256
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[math.log(2)], [0.0], [math.log(5)]], requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, Head(weight), torch.tensor([0]), 1.0)
    assert logprobs.item() == pytest.approx(math.log(0.25), rel=1e-6)
    assert entropy.item() == pytest.approx(0.900256, rel=1e-6)
    # d log p_0 / d logits = onehot - p = (.75, -.125, -.625); times hidden 1 for the weight, and weighted by the
    # logits for hidden: .75 ln 2 - .625 ln 5 = .519860 - 1.005899 = -.486038
    logprobs.sum().backward()
    torch.testing.assert_close(weight.grad, torch.tensor([[0.75], [-0.125], [-0.625]]))
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.486038]]), atol=1e-6, rtol=0)
    # Temperature 1/2 squares the odds: 4 : 1 : 25, p_0 = 4/30
    assert token_logprobs(hidden, Head(weight), torch.tensor([0]), 0.5)[0].item() == pytest.approx(math.log(4 / 30))


@pytest.mark.parametrize("bias", [-math.inf, torch.finfo(torch.float32).min, -1e38, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("words", [1, 2, 3, 5])
@pytest.mark.parametrize("masked", [0, 2, 4])
def test_words_without_probability_by_hand(masked: int, words: int, dtype: torch.dtype, bias: float) -> None:
    """Two words that a bias rules out, beside odds 2 : 1 : 5 as in `test_by_hand`: probabilities .25, .125, .625,
    entropy .900256, and gradient onehot - p at the three, nothing at the others (0 x -inf would be no number)."""
    allowed = [i for i in range(5) if i not in (masked, (masked + 1) % 5)]
    logits = torch.zeros(5, 1, dtype=dtype)
    logits[allowed, 0] = torch.tensor([2.0, 1.0, 5.0], dtype=dtype).log()
    weight, bias_V = logits.requires_grad_(), torch.full((5,), bias, dtype=dtype)
    bias_V[allowed] = 0
    head = Head(weight, bias_V.requires_grad_())
    hidden = torch.ones(2, 1, dtype=dtype, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([allowed[0]] * 2), 1.0, chunk_words=words)
    assert logprobs.tolist() == pytest.approx([math.log(0.25)] * 2, rel=1e-6)
    assert entropy.tolist() == pytest.approx([0.900256] * 2, rel=1e-5)
    logprobs[0].backward()
    expected = torch.zeros(5, dtype=dtype)
    expected[allowed] = torch.tensor([0.75, -0.125, -0.625], dtype=dtype)
    torch.testing.assert_close(bias_V.grad, expected)
    torch.testing.assert_close(weight.grad, expected[:, None])
    torch.testing.assert_close(hidden.grad, torch.tensor([[-0.486038], [0.0]], dtype=dtype), atol=1e-5, rtol=0)


def test_a_logit_far_above_the_others_leaves_no_entropy() -> None:
    for top in (1e30, 3e38):  # what was summed before is moved by more than a float32 holds
        head = Head(torch.tensor([[-1.0], [0.0], [1.0]]) * top)
        logprobs, entropy = token_logprobs(torch.ones(1, 1), head, torch.tensor([2]), 1.5, chunk_words=1)
        assert logprobs.item() == entropy.item() == 0


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("tokens", "words"), [(1, 11), (3, 4), (100, 1), (100, 100)])
def test_gradcheck_in_float64(kind: str, tokens: int, words: int) -> None:
    hidden, head, targets = make(7, 5, 11, torch.float64, **HEADS[kind])

    def f(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        inner = Head(weight, bias, head.softcap, head.scale)
        return token_logprobs(hidden, inner, targets, 0.85, chunk_tokens=tokens, chunk_words=words)[0]

    assert torch.autograd.gradcheck(f, leaves(hidden, head))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("temperature", [0.3, 0.85, 1.0, 2.0])
@pytest.mark.parametrize("words", [64, 301, None])  # borders inside the vocabulary, the last tile narrower; one tile
@pytest.mark.parametrize("product", ["fast", "torch.mm"])
def test_equals_the_naive_computation_in_float32(
    kind: str, temperature: float, words: int | None, product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients within 1e-5 of the largest, both against float64: no worse than naive float32."""
    if product == "torch.mm":
        monkeypatch.setattr("ulorl.learner.logprobs.has_onednn", lambda: False)
    hidden, head, targets = make(50, 32, 301, **HEADS[kind])
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves(hidden, head)]
    exact_head = Head(exact[1], exact[2] if len(exact) > 2 else None, head.softcap, head.scale)
    upstream = torch.linspace(-1, 1, 50)

    logprobs, entropy = token_logprobs(hidden, head, targets, temperature, chunk_tokens=16, chunk_words=words)
    expected, expected_entropy = naive(exact[0], exact_head, targets, temperature)
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert not entropy.requires_grad
    (logprobs * upstream).sum().backward()
    (expected * upstream).sum().backward()
    pairs = [(logprobs, expected), (entropy, expected_entropy)]
    pairs += [(ours.grad, theirs.grad) for ours, theirs in zip(leaves(hidden, head), exact, strict=True)]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(0, 9),
    V=st.integers(1, 9),
    tile=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kind=st.sampled_from(list(HEADS)),
)
def test_tile_size_changes_nothing(N: int, V: int, tile: tuple[int, int], kind: str) -> None:
    results = []
    for tokens, words in (tile, (None, None)):
        hidden, head, targets = make(N, 4, V, torch.float64, **HEADS[kind])
        logprobs, entropy = token_logprobs(hidden, head, targets, 0.85, chunk_tokens=tokens, chunk_words=words)
        (logprobs * torch.arange(N)).sum().backward()
        results.append([logprobs, entropy, *(leaf.grad for leaf in leaves(hidden, head))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("words", range(1, 9))
def test_a_target_in_every_tile_and_on_every_border(words: int) -> None:
    """Token i's target is word i, so each tile's first and last word is one token's target."""
    hidden, head, _ = make(8, 4, 8, torch.float64)
    targets = torch.arange(8)
    logprobs, entropy = token_logprobs(hidden, head, targets, 0.85, chunk_tokens=3, chunk_words=words)
    logprobs.sum().backward()
    ours = [logprobs, entropy, hidden.grad, head.weight_VH.grad]
    hidden, head, _ = make(8, 4, 8, torch.float64)
    expected, expected_entropy = naive(hidden, head, targets, 0.85)
    expected.sum().backward()
    for found, theirs in zip(ours, [expected, expected_entropy, hidden.grad, head.weight_VH.grad], strict=True):
        torch.testing.assert_close(found, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_logits_far_apart_from_tile_to_tile(order: str) -> None:
    # Logits 0, 5,000, 10,000, 10,000 in tiles of one word: the running maximum rises in steps of 5,000 or is there at
    # once. p = 0, 0, 1/2, 1/2, so log p = -10,000 - ln 2, -5,000 - ln 2, -ln 2, and H = ln 2.
    logits = torch.tensor([[0.0], [5_000.0], [10_000.0], [10_000.0]])
    weight = logits if order == "rising" else logits.flip(0)
    targets = torch.tensor([0, 1, 2] if order == "rising" else [3, 2, 1])
    hidden = torch.ones(3, 1, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, Head(weight), targets, 1.0, chunk_words=1)
    assert logprobs.tolist() == pytest.approx([-10_000 - math.log(2), -5_000 - math.log(2), -math.log(2)], rel=1e-6)
    assert entropy.tolist() == pytest.approx([math.log(2)] * 3, rel=1e-6)
    # d log p / d hidden = logit of the target - expected logit; the log-sum-exp, 14,427 bits, is rounded by up to 5e-4,
    # so the probabilities are by 5e-4 * ln 2 of their size, and 10,000 by 3.5
    logprobs.sum().backward()
    assert hidden.grad.flatten().tolist() == pytest.approx([-10_000, -5_000, 0], abs=3.5)


def test_sure_and_unsure_tokens() -> None:
    # Logits 0 and -200: p = 1 exactly in float32, entropy 0, and the other's log-prob is finite. Four equal: ln 4.
    weight = torch.tensor([[0.0], [-200.0], [-200.0], [-200.0]])
    logprobs, entropy = token_logprobs(torch.tensor([[1.0], [1.0], [0.0]]), Head(weight), torch.tensor([0, 1, 3]), 1.0)
    assert logprobs.tolist() == pytest.approx([0.0, -200.0, -math.log(4)])
    assert entropy.tolist() == pytest.approx([0.0, 0.0, math.log(4)])
    assert logprobs[0] >= math.log(1.0)  # well-mastered at tau = 1


def test_huge_logits_do_not_overflow() -> None:
    hidden, head, targets = make(6, 4, 9)
    logprobs, entropy = token_logprobs(hidden * 1e4, head, targets, 0.1)
    logprobs.sum().backward()
    assert torch.isfinite(logprobs).all()
    assert torch.isfinite(entropy).all()
    assert torch.isfinite(head.weight_VH.grad).all()


@pytest.mark.parametrize("kind", HEADS)
def test_bf16_is_multiplied_and_added_up_in_float32(kind: str) -> None:
    hidden, head, targets = make(40, 64, 500, torch.bfloat16, **HEADS[kind])
    full = [leaf.detach().float().requires_grad_() for leaf in leaves(hidden, head)]
    full_head = Head(full[1], full[2] if len(full) > 2 else None, head.softcap, head.scale)
    tile = {"chunk_tokens": 16, "chunk_words": 150}
    logprobs, entropy = token_logprobs(hidden, head, targets, 0.85, **tile)
    expected, expected_entropy = token_logprobs(full[0], full_head, targets, 0.85, **tile)
    assert logprobs.dtype == torch.float32
    assert torch.equal(logprobs, expected)
    assert torch.equal(entropy, expected_entropy)
    logprobs.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(leaves(hidden, head), full, strict=True):  # rounded once, at the very end
        assert ours.grad.dtype == torch.bfloat16
        assert torch.equal(ours.grad, theirs.grad.bfloat16())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the bf16 x bf16 -> float32 product")
def test_bf16_on_a_gpu() -> None:
    hidden, head, targets = make(40, 64, 500, torch.bfloat16)
    there = [leaf.detach().cuda().requires_grad_() for leaf in leaves(hidden, head)]
    logprobs, _ = token_logprobs(there[0], Head(there[1]), targets.cuda(), 0.85)
    expected, _ = token_logprobs(hidden, head, targets, 0.85)
    logprobs.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logprobs.cpu(), expected, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(there, leaves(hidden, head), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=0.05, rtol=0.02)


def test_autocast_does_not_lower_the_precision() -> None:
    hidden, head, targets = make(20, 16, 50)
    expected, _ = token_logprobs(hidden, head, targets, 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = token_logprobs(hidden, head, targets, 1.0)
    assert torch.equal(found, expected)


def test_only_what_needs_a_gradient_gets_one() -> None:
    hidden, head, targets = make(5, 4, 9, bias=True)
    frozen = Head(head.weight_VH.detach(), head.bias_V.detach())
    token_logprobs(hidden, frozen, targets, 1.0)[0].sum().backward()
    frozen_grad = hidden.grad.clone()
    hidden.grad = None
    token_logprobs(hidden, head, targets, 1.0)[0].sum().backward()
    assert torch.equal(hidden.grad, frozen_grad)
    with torch.no_grad():
        assert not token_logprobs(hidden, head, targets, 1.0)[0].requires_grad


def test_tokens_without_gradient_are_left_out_of_the_backward_pass() -> None:
    hidden, head, targets = make(6, 4, 9)
    upstream = torch.tensor([0.0, 1.0, 0.0, -2.0, 0.0, 0.5])
    (token_logprobs(hidden, head, targets, 0.85, chunk_tokens=2)[0] * upstream).sum().backward()
    ours = [leaf.grad for leaf in leaves(hidden, head)]
    hidden, head, targets = make(6, 4, 9)
    (naive(hidden, head, targets, 0.85)[0] * upstream).sum().backward()
    for found, leaf in zip(ours, leaves(hidden, head), strict=True):
        torch.testing.assert_close(found, leaf.grad)
    assert (ours[0][[0, 2, 4]] == 0).all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("kept", [0, 6 * 9])
def test_kept_and_recomputed_logits_give_the_same_gradients(
    kind: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where every token has a gradient and where some have none, and again when the graph is retained."""
    monkeypatch.setattr("ulorl.learner.logprobs.KEPT", kept)
    for upstream in (torch.arange(1.0, 7.0), torch.tensor([0.0, 1.0, 0.0, -2.0, 0.0, 0.5])):
        hidden, head, targets = make(6, 4, 9, torch.float64, **HEADS[kind])
        (naive(hidden, head, targets, 0.85)[0] * upstream).sum().backward()
        expected = [leaf.grad for leaf in leaves(hidden, head)]
        hidden, head, targets = make(6, 4, 9, torch.float64, **HEADS[kind])
        loss = (token_logprobs(hidden, head, targets, 0.85, chunk_words=4)[0] * upstream).sum()
        for retain in (True, False):
            for leaf in leaves(hidden, head):
                leaf.grad = None
            loss.backward(retain_graph=retain)
            for leaf, grad in zip(leaves(hidden, head), expected, strict=True):
                torch.testing.assert_close(leaf.grad, grad, atol=1e-12, rtol=1e-12)


def test_few_logits_are_computed_once_and_many_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 tiles of words: 3 products each for logits, hidden's gradient and the weight's gradient."""
    counts = []
    for kept in (6 * 9 - 1, 6 * 9):
        monkeypatch.setattr("ulorl.learner.logprobs.KEPT", kept)
        hidden, head, targets = make(6, 4, 9)
        with Products() as products:
            token_logprobs(hidden, head, targets, 1.0, chunk_words=3)[0].sum().backward()
        counts.append(products.count)
    assert counts == [12, 9]


class Products(TorchDispatchMode):
    """The number of matrix products."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.mm
        return func(*args, **(kwargs or {}))


def test_no_gradient_at_all_is_zeros() -> None:
    hidden, head, targets = make(5, 4, 9, bias=True)
    (token_logprobs(hidden, head, targets, 1.0)[0] * 0).sum().backward()
    for leaf in leaves(hidden, head):
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropies", [False, True])
def test_no_tensor_is_tokens_times_vocabulary(kind: str, dtype: torch.dtype, entropies: bool) -> None:
    """Of 600,000 logits 4,000 exist at once; hidden is 1,200 and the weight 2,000, so nothing hides behind them."""
    hidden, head, targets = make(600, 2, 1000, dtype, **HEADS[kind])
    with Largest() as largest:
        found = token_logprobs(
            hidden, head, targets, 0.85, chunk_tokens=32, chunk_words=125, entropy_gradient=entropies
        )
        sum(part.sum() for part in found if part.requires_grad).backward()
    assert largest.numel == 32 * 125
    assert hidden.grad is not None


@pytest.mark.parametrize(("V", "tile"), [(1000, 300 * 300), (100, 351 * 100)])
def test_default_tile_is_bounded(V: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 90,000 logits are 300 tokens x 300 words; a vocabulary of 100 words has 90,000 / 256 = 351 tokens in a tile
    monkeypatch.setattr("ulorl.learner.logprobs.TILE_CPU", 90_000)
    hidden, head, targets = make(400, 2, V)
    with Largest() as largest:
        token_logprobs(hidden, head, targets, 1.0)
    assert largest.numel == tile


def test_head_logits_are_those_of_the_log_probs() -> None:
    hidden, head, targets = make(9, 4, 11, **HEADS["all"])
    expected, _ = token_logprobs(hidden, head, targets, 1.0)
    logits = head_logits(head, hidden)
    torch.testing.assert_close(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0], expected)
    assert logits.abs().max() <= 3.0  # the cap


def test_wrong_arguments_are_refused() -> None:
    hidden, head, targets = make(5, 4, 9)
    with pytest.raises(ValueError, match="5 hidden states for 4 targets"):
        token_logprobs(hidden, head, targets[:4], 1.0)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_logprobs(hidden, head, targets, 0.0)
    with pytest.raises(ValueError, match=r"targets from 0 to 9; the head has words 0 to 8"):
        token_logprobs(hidden, head, torch.tensor([0, 9, 3, 1, 1]), 1.0)
