"""What the adapter refuses, which samples are correct and trained, and the log-probs of its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from refusals import refused
from small_models import KINDS, V, make
from trl_loops import SETTINGS, SOURCE, build, even, train
from ulorl.adapters.trl import UloRLConfig, UloRLTrainer, supported
from ulorl.adapters.trl.tiled_head import use_tiled_head
from ulorl.adapters.trl.trainer import informative, trained_tokens
from ulorl.adapters.trl.update_means import SUMS, update_means
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError


def config(**settings: Any) -> UloRLConfig:
    return UloRLConfig(output_dir=str(Path.cwd()), **{**SETTINGS, **settings})


CONFLICTS: list[dict[str, Any]] = [
    {"loss_type": "grpo"}, {"loss_type": "cispo"}, {"importance_sampling_level": "sequence"}, {"beta": 0.01},
    {"delta": 3.0}, {"top_entropy_quantile": 0.2}, {"entropy_coef": 0.01}, {"use_adaptive_entropy": True},
    {"off_policy_mask_threshold": 0.5}, {"use_liger_kernel": True}, {"steps_per_generation": 3},
    {"vllm_importance_sampling_correction": True, "use_vllm": True, "importance": "sais"},
    {"mpt_correct_function": "even", "mpt_correct": "advantage"},
]  # fmt: skip
BAD: list[dict[str, Any]] = [
    {"mpt_mask": "on"}, {"mpt_correct": "yes"}, {"importance": "tois"}, {"mpt_tau": 0.0}, {"mpt_tau": 1.1},
    {"mpt_tau": float("nan")}, {"mpt_sigma": -0.1}, {"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon_high": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", CONFLICTS, ids=lambda settings: "-".join(settings))
def test_settings_without_a_place_in_the_objective_are_refused(settings: dict[str, Any]) -> None:
    with refused(ErrorCode.CONFIG_CONFLICT, key=next(iter(settings))):
        config(**settings)


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_values_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with refused(ErrorCode.CONFIG_BAD_VALUE, key=next(iter(settings))):
        config(**settings)


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    with pytest.raises(CombinedError) as caught:
        config(mpt_tau=2.0, beta=0.1, loss_type="bnpo")
    assert [part.key for part in caught.value.parts] == ["mpt_tau", "loss_type", "beta"]


def test_a_trainer_refuses_what_does_not_go_with_it() -> None:
    with refused(ErrorCode.CONFIG_BAD_VALUE, key="args"):
        build(UloRLTrainer, args=GRPOConfig(output_dir=str(Path.cwd()), **SETTINGS))
    with refused(ErrorCode.CONFIG_CONFLICT, key="mpt_correct_function"):
        build(UloRLTrainer, mpt_correct_function="odd")
    with refused(ErrorCode.CONFIG_CONFLICT, key="importance"):
        build(UloRLTrainer, importance="sais")
    mixture = make("Qwen3Moe", vocab_size=SOURCE.vocabulary)
    with refused(ErrorCode.CONFIG_CONFLICT, key="router_aux_loss_coef"):
        build(UloRLTrainer, model=mixture, processing_class=SOURCE.tokenizer)


def test_sais_is_refused_where_a_rollout_records_nothing() -> None:
    def nothing(prompts: list[str], _: Any) -> dict[str, Any]:
        ids = [SOURCE.tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": ids, "completion_ids": [[5] * (1 + i % 2) for i in range(len(ids))], "logprobs": None}

    with refused(ErrorCode.CONFIG_CONFLICT, key="importance"):
        train(UloRLTrainer, importance="sais", rollout_func=nothing)


@pytest.mark.parametrize("found", [None, "1.15.0", "1.17.0", "2.0.0"])
def test_another_trl_is_refused(found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if found is None:
            raise supported.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(supported, "version", version)
    with refused(ErrorCode.EXTRA_MISSING) as caught:
        supported.require_trl()
    assert 'pip install "ulorl[trl]"' in str(caught.value)


def test_the_extra_has_the_supported_releases() -> None:
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    of_extra = [Requirement(line) for line in requires("ulorl") or [] if 'extra == "trl"' in line.replace("'", '"')]
    assert not of_extra or {str(one.specifier) for one in of_extra if one.name == "trl"} == {str(supported.SUPPORTED)}


def test_a_group_is_informative_where_rewards_differ() -> None:
    """Groups of 2, two functions: equal; the second function differs; unscored by both; unscored by one."""
    nan = float("nan")
    rewards_BF = torch.tensor([[1, 0], [1, 0], [1, 0], [1, 1], [nan, nan], [nan, nan], [nan, 0], [1, 0]])
    assert informative(rewards_BF, 2).tolist() == [False, False, True, True, False, False, True, True]


def test_trained_tokens_leave_out_padding_tools_and_whole_samples() -> None:
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        "tool_mask": torch.tensor([[1, 0, 1], [1, 1, 1], [1, 1, 1]]),
        "trained": torch.tensor([True, False, True]),
    }
    assert trained_tokens(inputs).tolist() == [[True, False, False], [False] * 3, [True, False, False]]


def long(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [None if len(ids) < 12 else 0.5 for ids in completion_ids]


@pytest.fixture(scope="module")
def trainer() -> UloRLTrainer:
    return build(UloRLTrainer, reward_funcs=[even, long], reward_weights=[1.0, 2.0], beta=0.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [  # weighted sums: 1 + 2 x 0.5, 0 + 2 x 0.5, 1, 0, none, 0.99999994
        ({}, [True, True, True, False, False, True]),
        ({"mpt_correct_reward": 2.0}, [True, False, False, False, False, False]),
        ({"mpt_correct_function": "even"}, [True, False, True, False, False, True]),
        ({"mpt_correct_function": "long", "mpt_correct_reward": 0.5}, [True, True, False, False, False, False]),
        ({"mpt_correct_reward": -1.0}, [True, True, True, True, False, True]),
    ],
)
def test_a_sample_is_correct_by_its_reward(
    trainer: UloRLTrainer, settings: dict[str, Any], expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    rewards_BF = torch.tensor([[1, 0.5], [0, 0.5], [1, nan], [0, nan], [nan, nan], [0.99999994, nan]])
    for name, value in {"mpt_correct_function": None, "mpt_correct_reward": 1.0, **settings}.items():
        monkeypatch.setattr(trainer.args, name, value)
    assert trainer._rewarded(rewards_BF).tolist() == expected


@pytest.mark.parametrize("correct", ["reward", "advantage"])
def test_correct_and_trained_stay_with_their_samples(correct: str) -> None:
    """TRL shuffles the samples of a generation: with rewards of 0 and 1 both definitions are the same."""
    updates, _, _ = train(UloRLTrainer, mpt_correct=correct, max_steps=1)
    for batch in updates[0].batches:
        texts = [
            SOURCE.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True)
            for ids, mask in zip(batch["completion_ids"], batch["completion_mask"], strict=True)
        ]
        rewarded = [reward == 1 for reward in even(texts)]
        trained = batch["trained"].tolist()
        assert [c for c, t in zip(batch["correct"].tolist(), trained, strict=True) if t] == [
            r for r, t in zip(rewarded, trained, strict=True) if t
        ]
        assert trained == (batch["advantages"] != 0).tolist()


def test_evaluation_logs_the_same_metrics(trainer: UloRLTrainer) -> None:
    logged = trainer.evaluate(trainer.train_dataset)
    assert {"eval_loss", "eval_entropy/mean", "eval_mpt/fraction"} <= logged.keys()
    assert not {name for name in logged if name.startswith("eval_importance/tis")}


def test_adapters_of_peft_train() -> None:
    from peft import LoraConfig

    settings = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"]), "max_steps": 1}
    updates, logs, _ = train(UloRLTrainer, **settings, mpt_tau=0.9)
    plain, plain_logs, _ = train(UloRLTrainer, max_steps=1, mpt_tau=0.9)
    assert updates[0].losses == pytest.approx(plain[0].losses, abs=1e-6)  # new adapters change nothing
    assert logs[0]["mpt/fraction"] == plain_logs[0]["mpt/fraction"]
    assert any(float(grad.abs().max()) > 0 for grad in updates[0].gradient.values())


def test_means_of_an_update() -> None:
    """8 tokens, 2 of them masked, so 6 in the loss; 4 MPTs carry 0.5 of 2 nats."""
    values = {
        "tokens": 8, "kept": 6, "entropy": 2.0, "mpts": 4, "mpt_entropy": 0.5, "masked": 2, "ratio": 6.6, "clipped": 3,
        "weights": 4.8,
    }  # fmt: skip
    means = update_means(torch.tensor([values[name] for name in SUMS], dtype=torch.float64), weighted=True)
    assert means == pytest.approx({
        "entropy/mean": 0.25, "mpt/fraction": 0.5, "mpt/masked_fraction": 0.25, "mpt/entropy_share": 0.25,
        "importance/ratio_mean": 1.1, "importance/clip_fraction": 0.5, "importance/tis_mean": 0.8, "train/tokens": 8,
    })  # fmt: skip
    assert update_means(torch.zeros(len(SUMS)), weighted=False) == {}


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


def test_other_calls_of_the_model_are_unchanged() -> None:
    model = make("Qwen3").eval()
    ids_BS = torch.arange(3, 19)[None]
    before = model(input_ids=ids_BS, labels=ids_BS)
    use_tiled_head(model, temperature=0.5)
    after = model(input_ids=ids_BS, labels=ids_BS)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)


def test_the_adapter_overrides_methods_that_trl_has() -> None:
    for name in ("_calculate_rewards", "_generate_and_score_completions", "_prepare_inputs", "_compute_loss"):
        assert name in vars(UloRLTrainer)
        assert name in vars(GRPOTrainer)
