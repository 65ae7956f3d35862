"""`model.cpu_kernels=false`: the generic path, without oneDNN and the fused decode step, gives the same results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import ulorl
from paths import COUNTDOWN
from tiny_learner import GROUPS, learner, weights
from ulorl.data.countdown import problems
from ulorl.engines.decode import rollout
from ulorl.engines.factory import make_engine
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.learner.logprobs import token_logprobs
from ulorl.models.cpu.linear_products import has_onednn
from ulorl.models.head import Head
from ulorl.models.model_source import ModelSource
from ulorl.training.specifications import engine_spec
from ulorl.types import Request, Sampling, Segment

USERS = ("ulorl.models.cpu.linear_products", "ulorl.models.cpu.fused_decode", "ulorl.learner.logprobs")
pytestmark = pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")


@contextmanager
def counted_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The products that go through oneDNN, all that may."""
    from ulorl.models.cpu import linear_products

    calls: list[int] = []
    original = linear_products.onednn_product

    def counted(*args: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr("ulorl.models.cpu.linear_products.SMALL", 0)
        patch.setattr("ulorl.models.cpu.fused_decode.small_packed_product", lambda _: 0)
        for module in USERS:
            patch.setattr(f"{module}.onednn_product", counted)
        yield calls


def decode(cpu_kernels: bool) -> dict[int, Segment]:
    """Greedy outputs of the shipped reasoner."""
    cfg = ulorl.load([COUNTDOWN], [f"model.cpu_kernels={str(cpu_kernels).lower()}", "engine.slots=5"])
    source = ModelSource(cfg.model.path)
    engine = make_engine(engine_spec(cfg, longest=128), source)
    assert isinstance(engine, TorchEngine)
    assert (engine._fused is not None) == cpu_kernels
    linear = [m for m in engine._model.modules() if isinstance(m, nn.Linear)]
    assert all((type(m) is not nn.Linear) == cpu_kernels for m in linear)
    prompts = [np.array(source.tokenizer(p.prompt).input_ids, dtype=np.int32) for p in problems(12, 3)]
    requests = [Request(i, p, 60, Sampling(0.0), i) for i, p in enumerate(prompts)]
    return {segment.sample_id: segment for segment in rollout(engine, requests)}


def test_greedy_decoding_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_products(monkeypatch) as calls:
        fast = decode(cpu_kernels=True)
        assert calls
        calls.clear()
        generic = decode(cpu_kernels=False)
        assert not calls
    for index, segment in fast.items():
        assert generic[index].tokens.tolist() == segment.tokens.tolist()
        np.testing.assert_allclose(generic[index].logprobs, segment.logprobs, atol=1e-5)


def test_logprobs_and_gradients_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 tokens, 1,000 words, in several tiles."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(200, 64, generator=generator), torch.randn(1000, 64, generator=generator) / 8
    targets = torch.randint(0, 1000, (200,), generator=generator)
    found = []
    with counted_products(monkeypatch) as calls:
        for cpu_kernels in (True, False):
            calls.clear()
            parts = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
            logprobs, entropy = token_logprobs(
                parts[0], Head(parts[1]), targets, 0.85, chunk_tokens=64, chunk_words=256, cpu_kernels=cpu_kernels
            )
            logprobs.sum().backward()
            assert bool(calls) == cpu_kernels
            found.append((logprobs.detach(), entropy, *(part.grad for part in parts)))
    for fast, generic in zip(*found, strict=True):
        torch.testing.assert_close(generic, fast, rtol=1e-5, atol=1e-5)


def test_an_update_gives_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted_products(monkeypatch) as calls:
        trained = []
        for cpu_kernels in (True, False):
            calls.clear()
            one = learner(cpu_kernels=cpu_kernels)
            update = one.update(GROUPS)
            assert update.steps == 1
            assert bool(calls) == cpu_kernels
            trained.append((weights(one), update.means))
    (fast, fast_means), (generic, generic_means) = trained
    for name, value in fast_means.items():
        assert generic_means[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    for name, tensor in fast.items():
        # AdamW's first step is lr * sign of the gradient: where that is rounding noise, it is noise as well
        assert ((generic[name] - tensor).abs() > 1e-4).float().mean() < 0.01, name
