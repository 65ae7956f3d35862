"""The mismatch of engine and learner by hand, truncated importance weights, and the weight check that stops a run."""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from refusals import refused
from tiny_learner import V, tiny_model
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.fleet import EngineFleet, FleetSettings
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.thread_worker import ThreadWorker
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.objective.corrections import engine_weights
from ulorl.objective.mismatch import Mismatch, logprob_mismatch
from ulorl.training.weight_check import SEGMENT_TOKENS, WeightCheck
from ulorl.types import Finish, Group, Problem, Request, Sample, Sampling, Scored, Segment, Tokens


def test_mismatch_by_hand() -> None:
    """log r = learner - engine = [ln 2, 0, -ln 2]: |.| = .6931, 0, .6931; r - 1 - log r = .3069, 0, .1931."""
    engine = np.array([-1.0, -2.0, -0.5], np.float32)
    learner = engine + np.log([2.0, 1.0, 0.5]).astype(np.float32)
    found = logprob_mismatch(engine, learner)
    assert found is not None
    assert found.tokens == 3
    assert found.mean == pytest.approx(2 * np.log(2) / 3, rel=1e-6)
    assert found.max == pytest.approx(np.log(2), rel=1e-6)
    assert found.kl == pytest.approx(((2 - 1 - np.log(2)) + (0.5 - 1 + np.log(2))) / 3, rel=1e-6)
    assert logprob_mismatch(engine[:0], learner[:0]) is None


def test_what_is_no_number_shows() -> None:
    found = logprob_mismatch(np.array([-1.0, np.nan], np.float32), np.array([-1.0, -1.0], np.float32))
    assert found is not None
    assert np.isnan(found.mean)


def test_the_kl_estimate_is_unbiased() -> None:
    """Tokens drawn from q = (.7, .2, .1), learner p = (.5, .3, .2): KL(q || p) = sum q log(q/p) = .0851."""
    q, p = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    drawn = np.random.default_rng(0).choice(3, size=200_000, p=q)
    found = logprob_mismatch(np.log(q)[drawn].astype(np.float32), np.log(p)[drawn].astype(np.float32))
    assert found is not None
    assert found.kl == pytest.approx(float((q * np.log(q / p)).sum()), rel=0.02)


def test_engine_weights_are_capped_ratios() -> None:
    """pi_old / pi_engine = e^.5 = 1.649, e^-1 = .368, e^3 = 20.1 capped at 2."""
    recorded = torch.tensor([-1.0, -1.0, -4.0])
    old = torch.tensor([-0.5, -2.0, -1.0], requires_grad=True)
    weights = engine_weights(old, recorded, cap=2.0)
    assert weights.tolist() == pytest.approx([np.exp(0.5), np.exp(-1), 2.0], rel=1e-6)
    assert not weights.requires_grad


# In the update


def learner(**objective: object) -> PolicyLearner:
    spec = LearnerSpec(
        optim=OptimConfig(lr=1e-2),
        objective=ObjectiveConfig(**{"mpt": {"mask": "off"}, **objective}),
        temperature=0.85,
        max_tokens=16,
        pad_id=0,
    )
    return one_device_learner(tiny_model(), spec, version=3)


def group(versions: list[list[int]], wrong: float = 0.0) -> Group:
    """Two samples of 4 tokens, right and wrong, each token with a version; recorded log-probs are the learner's of the
    seed model plus `wrong`."""
    members = []
    scorer = learner()
    for index, own in enumerate(versions):
        rng = np.random.default_rng(index)
        prompt, tokens = rng.integers(1, V, 3).astype(np.int32), rng.integers(1, V, 4).astype(np.int32)
        ids = torch.tensor(np.concatenate([prompt, tokens])[None].astype(np.int64))
        with torch.no_grad():
            logprobs = (scorer.model(ids).logits[0, 2:-1] / 0.85).log_softmax(-1)
        recorded = logprobs.gather(1, ids[0, 3:, None])[:, 0].numpy() + wrong
        segment = Segment(index, tokens, recorded.astype(np.float32), np.array(own, np.int32), Finish.EOS)
        sample = Sample(index, 0, prompt, (segment,))
        members.append(Scored(sample, 1.0 - index, ""))
    return Group(0, Problem("0", "?"), tuple(members))


def test_the_update_measures_the_tokens_of_the_newest_version() -> None:
    """Recorded log-probs are all .25 too high; only tokens of version 3, the learner's, say something of the engine."""
    means = learner().update([group([[2, 2, 3, 3], [2, 3, 3, 3]], wrong=0.25)]).means
    assert means["mismatch/mean"] == pytest.approx(0.25, abs=1e-5)
    assert means["mismatch/max"] == pytest.approx(0.25, abs=1e-5)
    assert means["mismatch/kl"] == pytest.approx(np.expm1(-0.25) + 0.25, abs=1e-5)
    assert "mismatch/mean" not in learner().update([group([[2, 2, 2, 2], [1, 1, 1, 1]])]).means


@pytest.mark.parametrize("importance", ["pois", "sais"])
def test_later_gradient_updates_do_not_look_like_mismatch(importance: str) -> None:
    """With two mini-batches the second one's forward pass runs under changed weights: it must not count, or be counted
    under the weights of the start."""
    trained = learner(importance=importance)
    trained.optim = OptimConfig(lr=1e-2, minibatches=2)
    means = trained.update([group([[3] * 4, [3] * 4])]).means
    assert means["mismatch/max"] < 1e-5


def test_truncated_importance_sampling_scales_the_gradient() -> None:
    """Every recorded log-prob is ln 2 too high: all weights are 1/2, and so is the gradient; capped, a quarter."""
    norms = {}
    for name, cap, wrong in (("off", 0.0, 0.0), ("half", 2.0, np.log(2)), ("capped", 0.25, np.log(2))):
        means = learner(tis_cap=cap).update([group([[3] * 4, [3] * 4], wrong=float(wrong))]).means
        norms[name] = means["train/grad_norm"]
        assert means.get("importance/tis_mean") == (None if not cap else pytest.approx(min(cap, 0.5), rel=1e-4))
    assert norms["half"] == pytest.approx(norms["off"] / 2, rel=1e-3)
    assert norms["capped"] == pytest.approx(norms["off"] / 4, rel=1e-3)


# The weight check


PROMPTS = [np.array(p, np.int32) for p in ([3, 4], [5, 6, 7], [8], [9, 10, 11, 12], [13])]


def engine(eos: tuple[int, ...] = (), slots: int = 4) -> TorchEngine:
    return TorchEngine(tiny_model(), eos_ids=eos, slots=slots, prefill_tokens=64, version=3)


def weight_check(tolerance: float = 1e-4) -> WeightCheck:
    return WeightCheck(PROMPTS, Sampling(0.85), seed=0, tolerance=tolerance)


def test_the_weight_check_passes_when_engine_and_learner_agree() -> None:
    found = weight_check()(engine(), learner())
    assert found.tokens == 4 * 2 * SEGMENT_TOKENS  # 4 prompts, 2 segments
    assert found.max < 1e-4
    ended = weight_check()(
        engine(eos=tuple(range(V))), learner()
    )  # every token ends the output: one segment of one token
    assert ended.tokens == 4


@pytest.mark.parametrize(("max_tokens", "segments"), [(1, [1]), (2, [1, 1]), (5, [3, 2]), (13, [7, 6]), (40, [8, 8])])
def test_the_weight_check_decodes_no_longer_outputs_than_the_run(max_tokens: int, segments: list[int]) -> None:
    """A prompt and the rollout's longest output fit the context; more might not."""
    decoded: list[int] = []

    class Counting(TorchEngine):
        def add(self, request: Request) -> None:
            decoded.append(request.max_new_tokens)
            super().add(request)

    counting = Counting(tiny_model(), eos_ids=(), slots=4, prefill_tokens=64, version=3)
    check = WeightCheck(PROMPTS[:1], Sampling(0.85), seed=0, tolerance=1e-4, max_tokens=max_tokens)
    assert check(counting, learner()).tokens == sum(segments)
    assert decoded == segments


def test_the_weight_check_stops_a_run_whose_engine_kept_old_weights() -> None:
    trained, stale = learner(), engine()
    trained.update([group([[3] * 4, [3] * 4])])
    with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
        weight_check()(stale, trained)
    stale.load_weights(trained.publish().tensors, trained.version)
    assert weight_check()(stale, trained).max < 1e-4


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_the_weight_check_asks_every_engine_of_a_fleet(prompts: list[Tokens]) -> None:
    """The last of 6 engines keeps old weights. Four prompts do not reach it. Six do, even if the mean
    over all tokens is below the tolerance."""
    trained = learner()
    trained.update([group([[3] * 4, [3] * 4])])
    engines = [TorchEngine(tiny_model(), eos_ids=(), slots=4, prefill_tokens=64, version=4) for _ in range(6)]
    for one in engines[:-1]:
        one.load_weights(trained.publish().tensors, 4)
    fleet = EngineFleet(
        [ThreadWorker(one) for one in engines],
        remake=lambda _: ThreadWorker(engine()),
        checks=SegmentChecks((), V, Sampling(0.85)),
        settings=FleetSettings(slots=4, group=2),
        version=4,
    )

    def check(number: int, tolerance: float) -> Mismatch:
        return WeightCheck(prompts, Sampling(0.85), seed=0, tolerance=tolerance, engines=number)(fleet, trained)

    with closing(fleet):
        assert check(4, 1e-4).tokens == 4 * 2 * SEGMENT_TOKENS
        found = check(6, 1e9)
        assert found.tokens == 6 * 2 * SEGMENT_TOKENS
        for tolerance in (1e-4, 2 * found.mean):
            with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
                check(6, tolerance)


@pytest.mark.parametrize(("apart", "tokens", "wrong"), [(0.8, 1, False), (0.4, 2, True), (0.1, 8, True)])
def test_a_token_that_is_far_apart_does_not_decide_about_an_output(apart: float, tokens: int, wrong: bool) -> None:
    """Of each of the two segments of one output, the first `tokens` of 8 are `apart` nats off: 1.6 nats in all, a mean
    of 0.1 over its 16 tokens and of 0.025 over all 64 of four outputs. The limit is 0.03. Without the two largest: 0 of
    one token a segment, 2 x 0.4 / 14 = 0.057 of two, and 0.1 of all, as with wrong weights."""

    class Off(TorchEngine):
        def step(self) -> list[Segment]:
            return [shifted(s) if s.sample_id == 0 else s for s in super().step()]

    def shifted(s: Segment) -> Segment:
        return replace(s, logprobs=s.logprobs - np.where(np.arange(len(s)) < tokens, apart, 0).astype(np.float32))

    check = WeightCheck(PROMPTS, Sampling(0.85), seed=0, tolerance=0.03, engines=4)
    off = Off(tiny_model(), eos_ids=(), slots=4, prefill_tokens=64, version=3)
    with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance") if wrong else nullcontext():
        assert check(off, learner()).max == pytest.approx(apart, abs=1e-3)


def test_the_weight_check_stops_a_run_whose_engine_gives_no_numbers() -> None:
    class Broken(TorchEngine):
        def step(self) -> list[Segment]:
            return [
                Segment(s.sample_id, s.tokens, np.full(len(s), np.nan, np.float32), s.versions, s.finish)
                for s in super().step()
            ]

    with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
        weight_check()(Broken(tiny_model(), eos_ids=(), slots=4, prefill_tokens=64), learner())


def test_the_weight_check_needs_a_cache_of_the_same_version() -> None:
    """An engine that keeps keys and values over a load of weights is noticed: the prompts are the same every time."""

    class Remembers(TorchEngine):
        """Gives a request it has seen before the log-probs of then."""

        seen: dict[bytes, Segment]

        def add(self, request: Request) -> None:
            self.keys = getattr(self, "keys", {}) | {request.sample_id: request.tokens.tobytes()}
            super().add(request)

        def step(self) -> list[Segment]:
            self.seen = getattr(self, "seen", {})
            return [self.seen.setdefault(self.keys[s.sample_id], s) for s in super().step()]

    trained = learner()
    cached = Remembers(tiny_model(), eos_ids=(), slots=4, prefill_tokens=64, version=3)
    weight_check()(cached, trained)
    trained.update([group([[3] * 4, [3] * 4])])
    cached.load_weights(trained.publish().tensors, trained.version)
    with refused(ErrorCode.ENGINE_MISMATCH, key="engine.tolerance"):
        weight_check()(cached, trained)
