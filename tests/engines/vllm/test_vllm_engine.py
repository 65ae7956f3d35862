"""The vLLM engine keeps the contract of the embedded engine, with real vLLM (`make test-engines` installs it)."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import ulorl
from paths import ROOT
from refusals import refused
from ulorl.config.engine_config import VllmConfig, VllmEngineConfig
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.engines.decode import rollout
from ulorl.engines.engine import Engine
from ulorl.engines.engine_spec import EngineSpec
from ulorl.engines.factory import make_engine
from ulorl.error_codes import ErrorCode
from ulorl.evaluation.avg_at_k import Evaluation, EvaluationSettings, evaluate
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.models.model_source import ModelSource
from ulorl.models.tiny import model_path
from ulorl.rng import sample_seed
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.training import run
from ulorl.training.weight_check import WeightCheck
from ulorl.types import Finish, Problem, Request, Sampling, Segment, Status

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-engines` runs these")

from ulorl.engines.retrying import RetryingEngine
from ulorl.engines.segment_checks import SegmentChecks
from ulorl.engines.vllm.vllm_engine import VllmEngine
from ulorl.engines.vllm.weight_transfer import WeightLoader
from ulorl.training.preflight import Inputs, load_inputs
from ulorl.training.specifications import engine_spec, model_source

RECIPE = ROOT / "recipes" / "quickstart.toml"
SMOLLM2 = Path(os.environ.get("ULORL_SMOLLM2", ROOT / "models" / "smollm2-135m-instruct")).absolute()
VLLM = ["engine.kind=vllm", "engine.vllm.eager=true", "model.threads=1"]
ENGINES = {"vllm": VLLM, "torch": ["engine.kind=torch", "model.threads=1"]}
TINY = str(model_path())
EOS = 1
WARM = Sampling(0.85)
PARITY = 2e-3  # nats, largest difference in float32


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    gc.collect()


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
    whole = own if tokens is None else tokens
    return Request(index, whole, len(own), budget, sampling, sample_seed(0, index))


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


@pytest.fixture(scope="class")
def warm() -> Iterator[VllmEngine]:
    """Temperature .85: vLLM's processed log-probs."""
    with closing(start()) as engine:
        yield engine


class TestOneEngine:
    """These share an engine, as each start of vLLM takes seconds; it ends with them, as only one can live here."""

    def test_logprobs_are_those_of_the_sampling_distribution(self, warm: VllmEngine) -> None:
        requests = [request(i, 24) for i in range(20)]  # more than slots: refilled while others decode
        found = play(warm, requests)
        assert warm.logprobs_mode == "processed_logprobs"
        assert sorted(found) == list(range(20))
        model = load()
        for r in requests:
            expected = transformers_logprobs(model, r.tokens, found[r.sample_id], 0.85)
            assert np.abs(found[r.sample_id].logprobs - expected).max() < PARITY
        lengths = [len(s) for s in found.values()]
        assert sum(lengths) > 100
        assert all((s.finish is Finish.EOS) == (s.tokens[-1] == EOS) for s in found.values())
        assert all(len(s) == 24 for s in found.values() if s.finish is Finish.LENGTH)
        assert all(s.tokens.dtype == np.int32 and (s.versions == warm.version).all() for s in found.values())

    def test_logprobs_that_the_mode_gets_wrong_are_no_numbers(self, warm: VllmEngine) -> None:
        found = play(warm, [request(0, 8, Sampling(0.85, top_p=0.9)), request(1, 8)])
        assert np.isnan(found[0].logprobs).all()
        assert not np.isnan(found[1].logprobs).any()

    def test_the_same_seed_draws_the_same_and_another_position_another(self, warm: VllmEngine) -> None:
        first, again = (play(warm, [request(i, 30) for i in range(6)]) for _ in range(2))
        alone = play(warm, [request(3, 30)])
        assert all(first[i].tokens.tolist() == again[i].tokens.tolist() for i in first)
        assert alone[3].tokens.tolist() == first[3].tokens.tolist()
        same_prompt = [Request(i, prompt(0), len(prompt(0)), 30, WARM, sample_seed(0, i)) for i in range(6)]
        assert len({tuple(s.tokens.tolist()) for s in play(warm, same_prompt).values()}) > 3

    def test_eos_on_the_last_token_of_the_budget_completes(self, warm: VllmEngine) -> None:
        found = play(warm, [request(i, 200) for i in range(30)])
        index, whole = next((i, s) for i, s in found.items() if s.finish is Finish.EOS and len(s) > 2)
        exact = play(warm, [request(index, len(whole))])[index]
        assert exact.finish is Finish.EOS
        assert exact.tokens.tolist() == whole.tokens.tolist()
        short = play(warm, [request(index, len(whole) - 1)])[index]
        assert short.finish is Finish.LENGTH
        assert short.tokens.tolist() == whole.tokens[:-1].tolist()

    def test_abort_returns_what_was_decoded_and_leaves_a_clean_engine(self, warm: VllmEngine) -> None:
        greedy = [request(i, 60, Sampling(0.0)) for i in range(12)]
        whole = play(warm, greedy)
        before = warm.stats.decode_tokens
        for r in greedy:
            warm.add(r)
        ended = [segment for _ in range(5) for segment in warm.step()]
        decoded = warm.stats.decode_tokens - before  # counted while they run
        partial = warm.abort()
        assert warm.pending == 0
        assert warm.step() == []
        assert len(ended) + len(partial) == 12
        assert decoded == sum(map(len, (*ended, *partial))) == warm.stats.decode_tokens - before
        assert {len(s) for s in partial} >= {0, 5}  # some waited for a slot
        for segment in partial:
            assert segment.finish is Finish.ABORT
            assert segment.tokens.tolist() == whole[segment.sample_id].tokens[: len(segment)].tolist()
            assert len(segment.logprobs) == len(segment.versions) == len(segment)
        assert play(warm, greedy)[11].tokens.tolist() == whole[11].tokens.tolist()

    def test_requests_that_cannot_be_served_are_refused(self, warm: VllmEngine) -> None:
        with pytest.raises(ValueError, match="exceed the engine's context length of 320"):
            warm.add(request(0, 320))
        with pytest.raises(ValueError, match=r"token ids must lie in 0\.\.110, found"):
            warm.add(request(0, 8, tokens=prompt(0) + 100))
        assert warm.pending == 0
        warm.add(request(0, 312))  # exactly the context
        with pytest.raises(RuntimeError, match="load_weights with 1 requests pending"):
            warm.load_weights([], 1)
        warm.abort()


def test_raw_logprobs_are_taken_at_temperature_1_with_any_truncation() -> None:
    truncated = Sampling(1.0, top_p=0.7, top_k=5)
    with closing(start(temperature=1.0)) as engine:
        assert engine.logprobs_mode == "raw_logprobs"
        found = play(engine, [request(i, 16, truncated) for i in range(8)])
        greedy = play(engine, [request(0, 16, Sampling(0.0))])[0]
        other = play(engine, [request(0, 16, Sampling(0.5))])[0]
    model = load()
    for i, segment in found.items():
        expected = transformers_logprobs(model, prompt(i), segment, 1.0)  # over the full vocabulary
        assert np.abs(segment.logprobs - expected).max() < PARITY
    assert np.abs(greedy.logprobs - transformers_logprobs(model, prompt(0), greedy, 1.0)).max() < PARITY
    assert np.isnan(other.logprobs).all()  # never a number of another distribution


def three_versions(engine: Engine, change: Callable[[PreTrainedModel, int], None] = perturb) -> None:
    """One sample over three segments, each with newer weights than the one before."""
    trained = learner()
    scheduler = Scheduler(SegmentSchedule(prompts=2, group=2, tokens=6), max_tokens=16, sampling=WARM, seed=4)
    new, budgets = [(Problem("a", "a"), prompt(0)), (Problem("b", "b"), prompt(1))], []
    models = []
    for version in range(3):
        if version:
            change(trained.model, version)
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


def test_a_segment_continues_over_three_versions() -> None:
    with closing(start(eos=())) as engine:
        three_versions(engine)


def test_the_same_in_another_process() -> None:
    """Weights go through a file in memory."""
    with closing(start(eos=(), process=True)) as engine:
        assert engine.transfer == "file"
        assert not hasattr(engine._llm, "model_executor")  # which is in our process otherwise
        three_versions(engine)
        for r in (request(0, 20), request(1, 20)):
            engine.add(r)
        engine.step()
        assert sorted(s.sample_id for s in engine.abort()) == [0, 1]


def test_a_killed_process_is_restarted_and_its_requests_decode_the_same() -> None:
    """SIGKILL while 4 requests decode. Eager decoding in float32: the second process draws the first one's tokens."""
    requests = [request(index, 24) for index in range(4)]
    model = load()
    retrying = RetryingEngine(
        start(eos=(), process=True), remake=lambda: start(eos=(), process=True),
        checks=SegmentChecks((), model.config.vocab_size, WARM), deadline=120,
    )  # fmt: skip
    with closing(retrying):
        undisturbed = play(retrying, requests)
        for one in requests:
            retrying.add(one)
        ended = retrying.step()
        (process,) = retrying._engine._llm.engine_core.resources.engine_manager.processes
        process.kill()
        while retrying.pending:
            ended += retrying.step()
        assert retrying.stats.faults == 1
        assert sorted(segment.sample_id for segment in ended) == [0, 1, 2, 3]
        for segment in ended:
            assert segment.tokens.tolist() == undisturbed[segment.sample_id].tokens.tolist()
            before = prompt(segment.sample_id)
            expected = transformers_logprobs(model, before, segment, 0.85)
            np.testing.assert_allclose(segment.logprobs, expected, atol=PARITY)


@pytest.mark.parametrize("family", ["llama_untied", "llama_tied", "qwen2", "qwen3_moe"])
def test_new_weights_reach_every_family(family: str, tmp_path: Path) -> None:
    """Tied and untied heads, biases, experts: after each load the weight check passes."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 320, "initializer_range": 0.3, "eos_token_id": 1,
        "bos_token_id": None,
    }  # fmt: skip
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "llama_untied": lambda: LlamaForCausalLM(LlamaConfig(**shape)),
        "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**shape)),
        "qwen3_moe": lambda: Qwen3MoeForCausalLM(
            Qwen3MoeConfig(**shape, head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
        ),
    }
    makers[family]().save_pretrained(tmp_path)
    trained, check = learner(str(tmp_path)), tight_check()
    with closing(start(str(tmp_path))) as engine:
        assert check(engine, trained).max < PARITY
        for trained.version in (1, 2):
            perturb(trained.model, trained.version)
            with refused(ErrorCode.ENGINE_MISMATCH):
                check(engine, trained)  # before the load: the check would notice
            engine.load_weights(trained.publish().tensors, trained.version)
            assert check(engine, trained).max < PARITY


@pytest.mark.parametrize("where", ["recipe", "config.json"])
def test_yarn_beyond_the_original_length(where: str, tmp_path: Path) -> None:
    """64 x 4 positions, prompts of 100, and a second segment that prefills the first. From our recipe, or from a
    config.json that leaves max_position_embeddings at 64, as Qwen's model cards write it."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 111, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.3, "max_position_embeddings": 64,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 12345.0, "factor": 4.0, "original_max_position_embeddings": 64}
    own = {"rope_type": "default", "rope_theta": 12345.0} if where == "recipe" else yarn
    made = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=1, bos_token_id=None, rope_parameters=dict(own)))
    made.save_pretrained(tmp_path)
    ModelSource(TINY).tokenizer.save_pretrained(tmp_path)
    rope = ["model.rope={type='yarn', factor=4, original_max_position_embeddings=64}"] if where == "recipe" else []
    cfg = ulorl.load([RECIPE], [*VLLM, f"model.path={tmp_path}", "rollout.temperature=0.85", *rope])
    theirs = Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=dict(yarn))).eval()
    theirs.load_state_dict(made.state_dict())
    with closing(make_engine(engine_spec(cfg, longest=256), model_source(cfg))) as engine:
        rounds = [[request(i, 60, tokens=prompt(i, 100)) for i in range(8)]]
        first = play(engine, rounds[0])
        carried = [np.concatenate([r.tokens, first[r.sample_id].tokens]).astype(np.int32) for r in rounds[0]]
        rounds.append([request(i, 40, tokens=tokens) for i, tokens in enumerate(carried)])
        for requests, found in zip(rounds, (first, play(engine, rounds[1])), strict=True):
            for r in requests:
                expected = transformers_logprobs(theirs, r.tokens, found[r.sample_id], 0.85)
                assert np.abs(found[r.sample_id].logprobs - expected).max() < PARITY
    assert max(map(len, carried)) > 160


def long_prompts_over_two_versions(engine: VllmEngine) -> None:
    """200 tokens fill a block of vLLM's prefix cache (128 on a CPU), twice the same prompt."""
    trained = learner()
    own = (np.arange(200) * 7 % 20 + 4).astype(np.int32)
    for version in range(2):
        if version:
            perturb(trained.model, version)
            engine.load_weights(trained.publish().tensors, version)
        for index in range(2):
            ask = Request(index, own, len(own), 8, WARM, sample_seed(version, index))
            segment = play(engine, [ask])[index]
            expected = transformers_logprobs(trained.model, own, segment, 0.85)
            assert np.abs(segment.logprobs - expected).max() < PARITY, f"version {version}"
    assert engine.stats.prefill_tokens == 2 * (200 + 72)  # the second request of a version finds the first's block


def test_the_prefix_cache_is_cleared_with_every_version() -> None:
    with closing(start(eos=())) as engine:
        long_prompts_over_two_versions(engine)


def test_an_old_prefix_cache_would_fail_the_parity_test(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(start(eos=())) as engine:
        monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        with pytest.raises(AssertionError, match="version 1"):
            long_prompts_over_two_versions(engine)


def test_wrong_weights_are_refused() -> None:
    trained = learner()
    weights = dict(trained.publish().tensors)
    with closing(start()) as engine:
        with pytest.raises(ValueError, match="unknown other"):
            engine.load_weights([*weights.items(), ("other", torch.zeros(1))], 1)
        weights.pop("model.norm.weight")
        with pytest.raises(ValueError, match=r"missing model\.norm\.weight"):
            engine.load_weights(weights.items(), 1)
        assert engine.version == 0


def tight_check() -> WeightCheck:
    return WeightCheck([prompt(i) for i in range(4)], WARM, seed=0, tolerance=2e-4)


def test_the_stale_weights_trap_would_fail_the_parity_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's plain reload on a CPU keeps the packed matrix of the tied head. Here our repacking is taken away."""
    monkeypatch.setattr(WeightLoader, "_ulorl_repack", lambda _: None)
    with closing(start(eos=())) as engine, pytest.raises(AssertionError, match="version 1"):
        three_versions(engine)


def test_the_stale_weights_trap_would_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check notices it at a change as small as one step of the quickstart makes: AdamW moves each weight by about
    its rate, 1e-4."""

    def one_step(model: PreTrainedModel, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=generator).sign() * 1e-4)

    monkeypatch.setattr(WeightLoader, "_ulorl_repack", lambda _: None)
    with closing(start(eos=())) as engine:
        trained = learner()
        trained.version = 1
        one_step(trained.model, 1)
        engine.load_weights(trained.publish().tensors, 1)
        with refused(ErrorCode.ENGINE_MISMATCH):
            tight_check()(engine, trained)
        monkeypatch.undo()
        engine.load_weights(trained.publish().tensors, 1)
        assert tight_check()(engine, trained).max < PARITY


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    for vllm, key in (
        ({"args": {"max_num_seq": 4}}, "args.max_num_seq"),
        ({"args": {"model": "x"}}, "args.model"),
        ({"sleep": True}, "sleep"),
    ):
        with refused(ErrorCode.ENGINE_SETTING, key=f"engine.vllm.{key}"):
            start(**vllm)


def test_what_vllm_refuses_is_said_in_one_line() -> None:
    with refused(ErrorCode.ENGINE_SETTING, key="engine.kind") as error:
        start(args={"kv_cache_memory_bytes": 1})
    assert "\n" not in str(error.value)


def test_one_engine_at_a_time_lives_in_our_process() -> None:
    """vLLM's process groups are the process's: closing one engine would end those of the other."""
    with closing(start()), pytest.raises(RuntimeError, match=r"one vLLM engine at a time.*process=true"):
        start()
    with closing(start()) as again:
        assert len(play(again, [request(0, 4)])) == 1


# Both engines on the quickstart's model and problems


def answers(kind: str, sampling: Sampling, problems: int) -> tuple[Inputs, Evaluation]:
    cfg = ulorl.load([RECIPE], [*ENGINES[kind], f"eval.problems={problems}"])
    inputs = load_inputs(cfg)
    with closing(make_engine(engine_spec(cfg, longest=inputs.longest(cfg)), inputs.source)) as engine:
        return inputs, evaluate(
            engine, inputs.scorer, inputs.held_out, EvaluationSettings(1, sampling, max_tokens=256, seed=0)
        )


def test_greedy_tokens_are_those_of_the_embedded_engine() -> None:
    """On 200 problems; where they part, the two best tokens are a tie (closer than the engines' rounding)."""
    inputs, ours = answers("torch", Sampling(0.0), 200)
    _, theirs = answers("vllm", Sampling(0.0), 200)
    model, ties = load(), 0
    for (_, own), a, b in zip(inputs.held_out, ours.scored, theirs.scored, strict=True):
        one, two = a.sample.tokens, b.sample.tokens
        if one.tolist() == two.tolist():
            continue
        n = min(len(one), len(two))
        at = int(np.flatnonzero(one[:n] != two[:n])[0])
        ids = torch.tensor(np.concatenate([own, one[:at]])[None].astype(np.int64))
        with torch.no_grad():
            best = model(ids).logits[0, -1].log_softmax(-1).topk(2)
        assert {int(one[at]), int(two[at])} == set(best.indices.tolist())
        assert float(best.values[0] - best.values[1]) < 1e-4
        ties += 1
    assert ties <= 4
    print(f"greedy: {200 - ties} of 200 outputs the same, {ties} part at a tie")


def test_sampled_lengths_and_rewards_agree_with_the_embedded_engine() -> None:
    """On 1,000 problems, within three standard errors of the difference."""
    numbers = {}
    for kind in ("torch", "vllm"):
        _, found = answers(kind, Sampling(1.0), 1000)
        lengths = np.array([len(s.sample) for s in found.scored])
        numbers[kind] = [(found.accuracy, found.stderr), (lengths.mean(), lengths.std(ddof=1) / np.sqrt(1000))]
    print(f"sampled (reward, mean length), each with its standard error: {numbers}")
    for (a, a_error), (b, b_error) in zip(numbers["torch"], numbers["vllm"], strict=True):
        assert abs(a - b) < 3 * np.hypot(a_error, b_error)


# Whole runs


def train(run_dir: Path, *overrides: str, recipe: Path = RECIPE, kind: str = "vllm") -> list[dict[str, float]]:
    return ulorl.train(ulorl.load([recipe], [*ENGINES[kind], f"run.dir={run_dir}", *overrides])).metrics


def agree_after_every_update(metrics: Sequence[dict[str, float]], updates: int) -> None:
    trained = [m for m in metrics if m.get("train/updates")]
    assert len(trained) >= updates
    assert all(m["mismatch/probe_max"] < PARITY for m in trained)
    assert all(m["mismatch/max"] < PARITY and m["mismatch/kl"] < 1e-6 for m in trained)


def test_the_quickstart_learns_as_with_the_embedded_engine(tmp_path: Path) -> None:
    seven = ["steps=7", "eval.problems=1", "run.checkpoint_every=0"]
    runs = {kind: train(tmp_path / kind, *seven, kind=kind) for kind in ("vllm", "torch")}
    rewards = {kind: [m["reward/mean"] for m in metrics[2:]] for kind, metrics in runs.items()}
    print(f"mean reward of steps 2 to 7: {rewards}")
    for kind, metrics in runs.items():
        agree_after_every_update(metrics, updates=6)
        assert np.mean(rewards[kind][-3:]) > np.mean(rewards[kind][:3]), kind
        assert any(m["rollout/multi_segment_fraction"] > 0.3 for m in metrics[2:])
    assert abs(np.mean(rewards["vllm"]) - np.mean(rewards["torch"])) < 0.08  # 6 steps of about 250 samples each
    books = [m["rollout/tokens"] for m in runs["vllm"][1:]], [m["rollout/decode_steps"] for m in runs["vllm"][1:]]
    assert all(tokens > 10_000 and 128 <= steps < 600 for tokens, steps in zip(*books, strict=True))


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path: Path) -> None:
    small = [
        "rollout.prompts=8", "rollout.group=2", "rollout.max_tokens=96", "rollout.segments=3", "data.size=40",
        "eval.problems=4", "run.checkpoint_every=2",
    ]  # fmt: skip
    straight = train(tmp_path / "straight", "steps=4", *small)
    train(tmp_path / "stopped", "steps=2", *small)
    resumed = run.resume(tmp_path / "stopped", ["steps=4"]).metrics
    clock = ("time/", "checkpoint/", "rollout/tokens_per_second")
    assert [{k: v for k, v in m.items() if not k.startswith(clock) and not k.startswith("eval/")} for m in resumed] == [
        {k: v for k, v in m.items() if not k.startswith(clock) and not k.startswith("eval/")} for m in straight
    ]


@pytest.mark.skipif(not (SMOLLM2 / "config.json").exists(), reason=f"no model in {SMOLLM2}; make test-engines gets it")
def test_smollm2_trains(tmp_path: Path) -> None:
    """A real pretrained model for two steps, 49,152 tokens of vocabulary, tied head."""
    metrics = train(
        tmp_path / "run", "steps=2", f"model.path={SMOLLM2}", "rollout.prompts=4", "eval.problems=4", "eval.samples=1",
        "rollout.max_tokens=32", "run.checkpoint_every=0", "objective.dynamic_sampling=false",
        recipe=ROOT / "recipes" / "smollm2_arithmetic.toml",
    )  # fmt: skip
    agree_after_every_update(metrics, updates=1)
    assert metrics[-1]["rollout/multi_segment_fraction"] > 0
    assert all(0 <= m["reward/mean"] <= 1 and m["rollout/tokens"] > 100 for m in metrics[1:])


def test_an_interrupt_of_the_whole_group_saves_first(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches vLLM's processes too; they must not die of it before the run is saved."""
    arguments = [
        str(RECIPE), *VLLM, "engine.vllm.process=true", "steps=20", "rollout.prompts=4", "data.size=40",
        "eval.problems=1", f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "ulorl", "train", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if line.split()[:1] == ["2"]:
                os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130, "".join(output)
    assert "stopped after step" in output[-1] + output[-2] + output[-3]
    assert any((tmp_path / "run" / "checkpoints").iterdir())
