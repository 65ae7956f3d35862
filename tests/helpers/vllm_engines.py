"""Small vLLM engines, and what their tests compare them with. Real vLLM: `make test-engines` installs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import ulorl
from paths import COUNTDOWN
from ulorl.config.engine_config import VllmConfig, VllmEngineConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.vllm.vllm_engine import VllmEngine
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.models.model_source import ModelSource
from ulorl.models.tiny import model_path
from ulorl.rng import sample_seed
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.training.weight_check import WeightCheck
from ulorl.types import Problem, Request, Sampling, Segment, Status

VLLM = ["engine.kind=vllm", "engine.vllm.eager=true", "model.threads=1"]
ENGINES = {"vllm": VLLM, "torch": ["engine.kind=torch", "model.threads=1"]}
TINY = str(model_path())
EOS = 1
WARM = Sampling(0.85)
PARITY = 2e-3  # nats, largest difference in float32


def start(path: str = TINY, *, temperature: float = 0.85, eos: Sequence[int] = (EOS,), slots: int = 8, **vllm: object):
    spec = EngineSpec(
        engine=VllmEngineConfig(slots=slots, prefill_tokens=512, vllm=VllmConfig(eager=True, **vllm)),
        device=torch.device("cpu"),
        sampling=Sampling(temperature),
        longest=320,
    )
    return VllmEngine(spec, ModelSource(path), eos_ids=eos)


def load(path: str = TINY) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def learner(path: str = TINY) -> PolicyLearner:
    return one_device_learner(
        load(path), LearnerSpec(OptimConfig(), ObjectiveConfig(), temperature=0.85, max_tokens=64, pad_id=0)
    )


def prompt(index: int, length: int = 8) -> np.ndarray:
    return (np.arange(3, 3 + length + index) * (index + 5) % 20 + 4).astype(np.int32)


def request(index: int, budget: int, sampling: Sampling = WARM, tokens: np.ndarray | None = None) -> Request:
    own = prompt(index)
    output = () if tokens is None else (tokens[len(own) :],)
    return Request(index, own, budget, sampling, sample_seed(0, index), output=output)


def play(engine: Engine, requests: Sequence[Request]) -> dict[int, Segment]:
    return {segment.sample_id: segment for segment in rollout(engine, requests)}


def transformers_logprobs(model: PreTrainedModel, before: np.ndarray, segment: Segment, temperature: float):
    """Log-probs of the segment's tokens after `before`, [T]."""
    ids = torch.tensor(np.concatenate([before, segment.tokens])[None].astype(np.int64))
    with torch.no_grad():
        logprobs = (model(ids).logits[0, len(before) - 1 : -1] / temperature).log_softmax(-1)
    return logprobs.gather(1, ids[0, len(before) :, None])[:, 0].numpy()


def perturb(model: PreTrainedModel, seed: int, size: float = 0.02) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * size * p.abs().mean())


def tight_check() -> WeightCheck:
    return WeightCheck([prompt(i) for i in range(4)], WARM, seed=0, tolerance=2e-4)


def three_versions(engine: Engine) -> PreTrainedModel:
    """One sample over three segments, each with newer weights than the one before; return the newest model."""
    trained = learner()
    scheduler = Scheduler(SegmentSchedule(prompts=2, group=2, tokens=6), max_tokens=16, sampling=WARM, seed=4)
    new, budgets = [(Problem("a", "a"), prompt(0)), (Problem("b", "b"), prompt(1))], []
    models = []
    for version in range(3):
        if version:
            perturb(trained.model, version)
            engine.load_weights(trained.publish().tensors, version)
        models.append({name: p.clone() for name, p in trained.publish().tensors})
        scheduler.begin_step(new)
        requests = scheduler.next_requests() or []
        new = []
        budgets.append({r.max_new_tokens for r in requests})
        samples = [scheduler.end_segment(segment) for segment in rollout(engine, requests)]
    assert budgets == [{6}, {6}, {4}]  # 16 in all: the last one has what is left
    assert [s.status for s in samples] == [Status.TRUNCATED] * 4
    for sample in samples:
        assert sample.versions.tolist() == [0] * 6 + [1] * 6 + [2] * 4
        before = sample.prompt
        for version, segment in enumerate(sample.segments):
            trained.model.load_state_dict(models[version], strict=False)
            expected = transformers_logprobs(trained.model, before, segment, 0.85)
            assert np.abs(segment.logprobs - expected).max() < PARITY, f"version {version}"
            before = np.concatenate([before, segment.tokens])
    return trained.model


def train(run_dir: Path, *overrides: str, recipe: Path = COUNTDOWN, kind: str = "vllm") -> list[dict[str, float]]:
    return ulorl.train(
        ulorl.load([recipe], [*ENGINES[kind], "log.report=false", f"run.dir={run_dir}", *overrides])
    ).metrics


def agree_after_every_update(metrics: Sequence[dict[str, float]], updates: int) -> None:
    trained = [m for m in metrics if m.get("train/updates")]
    assert len(trained) >= updates
    assert all(m["mismatch/probe_max"] < PARITY for m in trained)
    assert all(m["mismatch/max"] < PARITY and m["mismatch/kl"] < 1e-6 for m in trained)
