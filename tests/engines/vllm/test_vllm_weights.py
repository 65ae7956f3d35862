"""New weights are really used: by matrices that vLLM packs, by its prefix cache, and after every load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from refusals import refused
from ulorl.error_codes import ErrorCode
from ulorl.rng import sample_seed
from ulorl.types import Request

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from ulorl.engines.vllm.vllm_engine import VllmEngine
from ulorl.engines.vllm.weight_transfer import WeightLoader
from vllm_engines import (
    PARITY,
    WARM,
    learner,
    perturb,
    play,
    start,
    three_versions,
    tight_check,
    transformers_logprobs,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[VllmEngine]:
    with closing(start(eos=())) as engine:
        yield engine


@pytest.fixture
def engine(shared: VllmEngine) -> VllmEngine:
    """The engine that these tests share, as each start of vLLM takes seconds, with the weights that it began with."""
    shared.load_weights(learner().publish().tensors, 0)
    return shared


def test_a_segment_continues_over_three_versions(engine: VllmEngine) -> None:
    three_versions(engine)


def long_prompts_over_two_versions(engine: VllmEngine) -> None:
    """200 tokens fill a block of vLLM's prefix cache (128 on a CPU), twice the same prompt."""
    trained, before = learner(), engine.stats.prefill_tokens
    own = (np.arange(200) * 7 % 20 + 4).astype(np.int32)
    for version in range(2):
        if version:
            perturb(trained.model, version)
            engine.load_weights(trained.publish().tensors, version)
        for index in range(2):
            ask = Request(index, own, 8, WARM, sample_seed(version, index))
            segment = play(engine, [ask])[index]
            expected = transformers_logprobs(trained.model, own, segment, 0.85)
            assert np.abs(segment.logprobs - expected).max() < PARITY, f"version {version}"
    assert engine.stats.prefill_tokens - before == 2 * (
        200 + 72
    )  # the second request of a version finds the first's block


def test_the_prefix_cache_is_cleared_with_every_version(engine: VllmEngine) -> None:
    long_prompts_over_two_versions(engine)


def test_an_old_prefix_cache_would_fail_the_parity_test(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    with pytest.raises(AssertionError, match="version 1"):
        long_prompts_over_two_versions(engine)


def test_wrong_weights_are_refused(engine: VllmEngine) -> None:
    weights = dict(learner().publish().tensors)
    with pytest.raises(ValueError, match="unknown other"):
        engine.load_weights([*weights.items(), ("other", torch.zeros(1))], 1)
    weights.pop("model.norm.weight")
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight"):
        engine.load_weights(weights.items(), 1)
    assert engine.version == 0


def test_the_stale_weights_trap_would_fail_the_parity_test(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's plain reload on a CPU keeps the packed matrix of the tied head. Here our repacking is taken away."""
    monkeypatch.setattr(WeightLoader, "_ulorl_repack", lambda _: None)
    with pytest.raises(AssertionError, match="version 1"):
        three_versions(engine)


def test_the_stale_weights_trap_would_stop_the_run(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check notices it at a change as small as one step of the countdown recipe makes: AdamW moves each weight by
    about its rate, 1e-4."""

    def one_step(model: PreTrainedModel, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator).sign() * 1e-4)

    monkeypatch.setattr(WeightLoader, "_ulorl_repack", lambda _: None)
    trained = learner()
    trained.version = 1
    one_step(trained.model, 1)
    engine.load_weights(trained.publish().tensors, 1)
    with refused(ErrorCode.ENGINE_MISMATCH):
        tight_check()(engine, trained)
    monkeypatch.undo()
    engine.load_weights(trained.publish().tensors, 1)
    assert tight_check()(engine, trained).max < PARITY
