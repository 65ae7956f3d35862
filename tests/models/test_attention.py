"""What packed samples see of each other, with every kernel. flash-attention runs on a GPU only: here transformers' own
code around it runs, with the two kernels themselves written out in torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
    modeling_flash_attention_utils,
)

from refusals import refused
from tiny_learner import GROUPS, MODELS, gradient, learner, tiny_model
from ulorl.error_codes import ErrorCode
from ulorl.learner.model_checks import packed_samples_leak
from ulorl.learner.policy import Policy
from ulorl.models import attention as kernels
from ulorl.models.attention import REPEATED, require_attention, set_attention


def attend(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, S, heads, D] of one sample a row; a token sees itself and window[0] before it (-1: all)."""
    at = torch.arange(q.shape[1])
    seen = at[:, None] >= at
    if window[0] >= 0:
        seen &= at[:, None] - at <= window[0]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(1, 2)


def blind(_module: object, q: Tensor, k: Tensor, v: Tensor, _mask: object, **_: object) -> tuple[Tensor, None]:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2), None


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """flash-attn's two functions in plain torch; the list fills with the borders the packed one was given."""
    borders: list[list[int]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size=(-1, -1), **_: object) -> Tensor:
        assert causal
        return attend(q, k, v, window_size)

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, causal: bool, window_size=(-1, -1), **_: object,
    ) -> Tensor:  # fmt: skip
        assert causal
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        borders.append(cu_seqlens_q.tolist())
        parts = itertools.pairwise(borders[-1])
        return torch.cat([attend(q[None, a:b], k[None, a:b], v[None, a:b], window_size)[0] for a, b in parts])

    kernels = (flash_attn_func, flash_attn_varlen_func, None, None, None)
    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    return borders


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_flash_attention_gives_the_loss_and_gradient_of_sdpa(model: str, layout: str, flash: list[list[int]]) -> None:
    """As transformers calls it: with cu_seqlens made of the position ids of a packed row, and without for a padded
    one, where causal attention never looks at the padding."""
    optim, objective = {"grad_clip": 1e9}, {"importance": "sais", "mpt": {"mask": "off"}}
    loss, grads = gradient(learner(optim, objective, model=model))
    of = learner({**optim, "layout": layout}, objective, model=model)
    of.model.config._attn_implementation = "flash_attention_2"  # past the checks for a GPU
    found, found_grads = gradient(of)
    assert found == pytest.approx(loss, rel=1e-5)
    for name, expected in grads.items():
        torch.testing.assert_close(found_grads[name], expected, rtol=1e-5, atol=1e-5)
    members = [member.sample for group in GROUPS for member in group.members]
    lengths = sorted((len(m.prompt) + len(m) for m in members), reverse=True)  # longest first
    expected_borders = np.cumsum([0, *lengths]).tolist()
    assert flash == ([expected_borders] * 2 if layout == "packed" else [])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_packing_is_allowed_where_samples_do_not_see_each_other(model: str, attention: str, autocast: bool) -> None:
    of = tiny_model(model)
    set_attention(of, attention)
    assert of.config._attn_implementation == attention
    assert not leaks(of, autocast=autocast)
    assert not leaks(of.bfloat16(), autocast=False)


def leaks(model: PreTrainedModel, *, autocast: bool) -> bool:
    return packed_samples_leak(Policy(model, 1.0, autocast=autocast, cpu_kernels=True), model)


CONV = Lfm2Config(
    vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, layer_types=["conv", "full_attention"],
)  # fmt: skip


@pytest.mark.parametrize("kind", ["a kernel that ignores the mask", "a convolution that runs over the border"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_is_refused_where_they_do(kind: str, dtype: torch.dtype) -> None:
    """Also in bfloat16, and where random weights make the leak smaller than rounding: no tolerance is involved."""
    if kind.startswith("a kernel"):
        model = tiny_model()
        AttentionInterface.register("blind", blind)
        set_attention(model, "blind")
    else:
        torch.manual_seed(0)
        model = Lfm2ForCausalLM(CONV).eval()
    assert leaks(model.to(dtype), autocast=False)
    assert all(p.grad is None for p in model.parameters())


def test_a_kernel_that_cannot_run_is_refused() -> None:
    with refused(ErrorCode.DEVICE_UNAVAILABLE, key="model.attention"):
        require_attention("flash_attention_2", "cpu")
    require_attention("sdpa", "cpu")
    with refused(ErrorCode.MODEL_UNSUPPORTED, key="model.attention"):
        set_attention(tiny_model(), "flash_attention_2")


def test_flash_attention_without_a_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused(ErrorCode.EXTRA_MISSING, key="model.attention"):
        require_attention("flash_attention_2", "cuda:0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_repeated_keys_and_values_give_the_logits_and_gradients_of_sdpa(
    dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel for float32 on a GPU, here on a CPU: query heads share keys and values."""
    monkeypatch.setattr(kernels, "_in_float32_on_gpu", lambda _: True)
    ids = torch.arange(24).view(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, 9:] = 0
    found, seen = {}, list[tuple[int, bool]]()

    def watched(q: Tensor, k: Tensor, v: Tensor, *arguments: object, **named: object) -> Tensor:
        seen.append((k.shape[1], bool(named.get("enable_gqa"))))
        return scaled_dot_product_attention(q, k, v, *arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    for name in ("sdpa", REPEATED):
        model = tiny_model().to(dtype)  # two query heads, one of keys and values
        model.set_attn_implementation(name)
        logits = model(ids, attention_mask=mask if masked else None).logits[:, :9]
        logits.square().sum().backward()
        found[name] = [logits, *(p.grad for p in model.parameters())]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert seen == [(2, False) if masked else (1, True)] * 2 + [(2, False)] * 2


def test_what_is_not_float32_on_a_gpu_runs_as_in_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(kernels, "sdpa_attention_forward", lambda *arguments, **_: calls.append(arguments[:3]))
    module, heads = tiny_model().model.layers[0].self_attn, torch.zeros(1, 2, 4, 8)
    kernels.repeated_sdpa(module, heads, heads[:, :1], heads[:, :1], None)
    assert calls[0][0] is module
    assert calls[0][2].shape[1] == 1


def test_a_machine_with_a_gpu_takes_the_kernel_of_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    of = tiny_model()
    set_attention(of, "sdpa")
    assert of.config._attn_implementation == REPEATED
    assert not leaks(of, autocast=False)  # it gets the masks of sdpa
    set_attention(of, "eager")
    assert of.config._attn_implementation == "eager"
