"""Linear layers through oneDNN: torch's own results, forward and backward, and only where they apply."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from ulorl.models.cpu.linear_products import has_bfloat16, has_onednn, small_packed_product, use_onednn

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulorl.models.cpu.linear_products.SMALL", 0)


def test_small_products_are_torch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("ulorl.models.cpu.linear_products.SMALL", 8 * 4 * 3)
    monkeypatch.setattr(
        "ulorl.models.cpu.linear_products.onednn_product", lambda x, *_: calls.append(len(x)) or x.new_zeros(9, 3)
    )
    layer = nn.Linear(4, 3)
    use_onednn(layer)
    layer(torch.randn(8, 4))
    assert not calls
    layer(torch.randn(9, 4))
    assert calls == [9]


@pytest.mark.parametrize(
    ("capability", "entries", "small"),
    [
        ("AVX512", 2**18, 2**20),
        ("AVX2", 2**18 - 1, 2**24),
        ("AVX2", 2**18, 2**18),  # torch.mm for one row only
        ("AVX2", 2**24, 2**24),
        ("AVX2", 2**24 + 1, 2**24),  # never torch.mm, so that no second copy of a large matrix is kept
        ("DEFAULT", 2**17, 2**24),
    ],
)
def test_packed_products_are_chosen_by_what_the_processor_has(
    capability: str, entries: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never by a clock: the same machine multiplies the same way in every run."""
    monkeypatch.setattr("ulorl.models.cpu.linear_products.SMALL", 2**24)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert small_packed_product(entries) == small


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (1,), (3, 1, 4)])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(48, 80, bias=bias), nn.SiLU(), nn.Linear(80, 33, bias=bias))
    ours = copy.deepcopy(plain)
    use_onednn(ours)
    assert type(ours[0]) is not nn.Linear
    assert isinstance(ours[0], nn.Linear)  # peft and others look for linear layers
    x = torch.randn(*shape, 48)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [model(one) for model, one in zip((plain, ours), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
    for (name, expected), found in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-5, msg=name)


def test_onednn_keeps_its_kernels_unless_the_user_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for given, kept in ((None, "4096"), ("7", "7")):
        monkeypatch.setenv(name, given) if given else monkeypatch.delenv(name, raising=False)
        use_onednn(nn.Linear(2, 2))
        assert os.environ[name] == kept


def test_a_gradient_by_hand() -> None:
    """y = w . x with w = (2, 3), x = (5, 7): y = 31, dy/dw = x, dy/dx = w; a slope of 10 scales both."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, 3.0]])
    use_onednn(layer)
    x = torch.tensor([[5.0, 7.0]], requires_grad=True)
    y = layer(x)
    (10 * y).sum().backward()
    assert y.item() == 31
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert x.grad.tolist() == [[20, 30]]
    assert layer.weight.grad.tolist() == [[50, 70]]


def test_frozen_weights_get_no_gradient() -> None:
    layer = nn.Linear(8, 8).requires_grad_(False)
    use_onednn(layer)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 8))


def test_other_dtypes_stay_with_torch() -> None:
    layers = [nn.Linear(4, 4, dtype=dtype) for dtype in (torch.float64, torch.bfloat16)]
    for layer in layers:
        use_onednn(layer)
        assert type(layer) is nn.Linear
    layer = nn.Linear(4, 4)
    use_onednn(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
    assert layer(torch.empty(0, 4)).shape == (0, 4)


def test_recomputed_activations_give_the_same_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 16))
    use_onednn(model)
    x = torch.randn(5, 16)
    grads = []
    for recompute in (False, True):
        model.zero_grad()
        again = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False) if recompute else model(x)
        again.square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def asked_again() -> Iterator[None]:
    has_bfloat16.cache_clear()
    yield
    has_bfloat16.cache_clear()


@pytest.mark.usefixtures("asked_again")
@pytest.mark.parametrize(
    ("processor", "onednn", "avx512_bf16", "amx", "native"),
    [
        ("x86_64", True, False, False, False),  # AVX-512 alone: oneDNN says that it supports bfloat16, and converts
        ("x86_64", True, True, False, True),
        ("x86_64", True, False, True, True),
        ("x86_64", False, True, True, False),  # ONEDNN_MAX_CPU_ISA=AVX2
        ("aarch64", True, False, False, True),
    ],
)
def test_bfloat16_is_native_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, processor: str, onednn: bool, avx512_bf16: bool, amx: bool, native: bool
) -> None:
    products = "ulorl.models.cpu.linear_products"
    monkeypatch.setattr(f"{products}.platform.machine", lambda: processor)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    assert has_bfloat16() is native
