"""DMMPTs and POIS in verl's own PPO loss: loss and gradient of eq. 10, on the release of verl that pip installs.

Shapes: B samples, N output tokens, T output tokens of the longest sample.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("verl", reason="`make test-verl` runs these")

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
from verl.utils import tensordict_utils
from verl.utils.metric import Metric
from verl.workers.config import FSDPActorConfig
from verl.workers.config import PolicyLossConfig as VerlPolicyLossConfig
from verl.workers.utils import losses

from refusals import refused
from ulorl.adapters import verl as adapter
from ulorl.error_codes import ErrorCode
from ulorl.objective import clipped_objective_sum, masked_tokens, old_logprobs

LOOP = {"calculate_entropy": True, "train_batch_size": 8, "ppo_mini_batch_size": 8, "ppo_epochs": 1}
BYPASS = {"bypass_mode": True}
B, DP_SIZE, TOKENS = 6, 2, 97  # TOKENS: of the mini-batch, on both ranks


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `install` does, which refuses a process in which another test has imported verl's workers."""
    monkeypatch.setattr(losses, "ppo_loss", adapter.ppo_loss)


@dataclass
class Samples:
    """A micro-batch as verl's engines pass it, and the same values as plain tensors."""

    data: TensorDict
    output: dict[str, Tensor]
    leaf: Tensor  # log-probs of all tokens, prompts included, of which `output` is a view
    columns: dict[str, Tensor]  # of the output tokens in the loss, [N]
    rewards_B: Tensor

    @property
    def logprobs(self) -> Tensor:
        """Those of the output tokens in the loss [N], with gradient."""
        return self.leaf[self.columns["place"]]


def samples(seed: int = 0) -> Samples:
    """B samples of 6 to 12 tokens after prompts of 1 to 4; some tokens are those of a tool, outside of every loss."""
    random = torch.Generator().manual_seed(seed)

    def real(n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=random, dtype=torch.float64)

    prompts = torch.randint(1, 5, (B,), generator=random).tolist()
    lengths = torch.randint(6, 13, (B,), generator=random).tolist()
    total = sum(prompts) + sum(lengths)
    ends = torch.tensor([0, *[p + t for p, t in zip(prompts, lengths, strict=True)]]).cumsum(0)
    # Half of the tokens are certain (p from 0.98 to 1). Sample 3 has a mean entropy above sigma, the others below.
    certain = torch.rand(total, generator=random) < 0.5
    leaf = torch.where(certain, real(total, 0.98, 1.0).log(), real(total, -3.0, -0.5)).requires_grad_()
    entropy = real(total, 0.0, 0.25)
    entropy[ends[3] : ends[4]] += 0.2
    mask_N = torch.rand(sum(lengths), generator=random) > 0.15
    rewards_B = (torch.arange(B) % 2).double()
    sample_N = torch.arange(B).repeat_interleave(torch.tensor(lengths))
    # The score of a token is predicted at the position before it.
    place_N = torch.cat([torch.arange(end - t - 1, end - 1) for end, t in zip(ends[1:], lengths, strict=True)])
    columns = {
        "place": place_N,
        "sample": sample_N,
        "advantages": (2 * rewards_B - 1)[sample_N] * 1.1,
        "old_log_probs": leaf.detach()[place_N] + real(len(place_N), -0.5, 0.5),
        "rollout_log_probs": leaf.detach()[place_N] + real(len(place_N), -0.5, 0.5),
        "entropy": entropy[place_N],
    }
    scores = [torch.zeros(t) for t in lengths]
    for score, reward in zip(scores, rewards_B, strict=True):
        score[-1] = reward
    parts = {name: nested(columns[name].split(lengths)) for name in list(columns)[2:5]}
    masks = nested(mask_N.long().split(lengths))
    data = TensorDict(
        {
            "prompts": nested([torch.ones(p, dtype=torch.long) for p in prompts]),
            "responses": nested([torch.ones(t, dtype=torch.long) for t in lengths]),
            "response_mask": masks, "loss_mask": masks, "rm_scores": nested(scores), **parts,
        },
        batch_size=[B],
    )  # fmt: skip
    tensordict_utils.assign_non_tensor(data, dp_size=DP_SIZE, batch_num_tokens=TOKENS, global_batch_size=2 * B)
    output = {
        "log_probs": torch.nested.nested_tensor_from_jagged(leaf, ends),
        "entropy": torch.nested.nested_tensor_from_jagged(entropy, ends),
    }
    return Samples(data, output, leaf, {name: column[mask_N] for name, column in columns.items()}, rewards_B)


def nested(parts: Any) -> Tensor:
    return torch.nested.as_nested_tensor(list(parts), layout=torch.jagged)


def settings(**changes: Any) -> adapter.PolicyLossConfig:
    return adapter.PolicyLossConfig(**({"rollout_correction": {"bypass_mode": False}} | LOOP | changes))


def actor(policy_loss: VerlPolicyLossConfig, **changes: Any) -> FSDPActorConfig:
    return FSDPActorConfig(
        rollout_n=2, ppo_micro_batch_size_per_gpu=1, clip_ratio_c=1e9, policy_loss=policy_loss, **changes
    )


def of_verl(batch: Samples, config: FSDPActorConfig) -> tuple[Tensor, Tensor, dict[str, Metric]]:
    """Return loss, gradient and metrics of the function that verl's workers call."""
    loss, metrics = losses.ppo_loss(config, batch.output, batch.data)
    [gradient] = torch.autograd.grad(loss, batch.leaf)
    return loss.detach(), gradient, metrics


def of_objective(batch: Samples, *, importance: str, one_update: bool = False, **mask: Any) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of eq. 10 by the functions of `ulorl.objective`."""
    column, logprobs_N = batch.columns, batch.logprobs
    masked_N = masked_tokens(logprobs_N, column["entropy"], column["sample"], batch.rewards_B == 1, **mask)
    start_N = None if one_update else column["old_log_probs"]
    old_N = old_logprobs(importance, column["rollout_log_probs"], start_N, logprobs_N)
    loss_sum, _ = clipped_objective_sum(logprobs_N, old_N, column["advantages"], ~masked_N, clip_low=0.2, clip_high=0.2)
    loss = loss_sum / TOKENS * DP_SIZE  # verl averages the gradients of the ranks
    [gradient] = torch.autograd.grad(loss, batch.leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mask", ["off", "all", "dynamic"])
def test_loss_and_gradient_are_those_of_the_objective(mask: str, seed: int) -> None:
    batch = samples(seed)
    loss, gradient, _ = of_verl(batch, actor(settings(mask=mask)))
    wanted, wanted_gradient = of_objective(batch, importance="pois", mask=mask, tau=0.99, sigma=0.2)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-12, atol=1e-14)


def test_masked_tokens_have_no_gradient_and_stay_in_the_denominator() -> None:
    batch = samples()
    column, correct_B = batch.columns, batch.rewards_B == 1
    masked_N = masked_tokens(
        batch.logprobs, column["entropy"], column["sample"], correct_B, mask="dynamic", tau=0.99, sigma=0.2
    )
    assert 0 < masked_N.sum() < len(masked_N)
    _, with_mask, metrics = of_verl(batch, actor(settings()))
    _, without, _ = of_verl(batch, actor(settings(mask="off")))
    assert not with_mask[column["place"][masked_N]].any()
    assert without[column["place"][masked_N]].any()
    assert torch.equal(with_mask[column["place"][~masked_N]], without[column["place"][~masked_N]])
    shares = {
        "mpt/positive_fraction": correct_B[column["sample"]],
        "mpt/fraction": correct_B[column["sample"]] & (batch.logprobs.exp() >= 0.99),
        "mpt/masked_fraction": masked_N,
        "entropy/mean": column["entropy"],
    }
    for name, values_N in shares.items():  # over all tokens of the mini-batch; verl averages over the ranks
        assert metrics[name].aggregate() == pytest.approx(float(values_N.sum()) * DP_SIZE / TOKENS)


def test_tool_tokens_count_neither_as_output_nor_in_the_entropy_of_a_sample() -> None:
    batch = samples()
    loss, gradient, _ = of_verl(batch, actor(settings()))
    outside = torch.ones_like(batch.leaf, dtype=torch.bool)
    outside[batch.columns["place"]] = False
    with torch.no_grad():
        batch.leaf[outside] = 0.0
        batch.output["entropy"].values()[outside] = 100.0
    again, gradient_again, _ = of_verl(batch, actor(settings()))
    assert torch.equal(loss, again)
    assert torch.equal(gradient, gradient_again)


def test_tokens_that_verl_rejects_still_count_in_the_entropy_of_a_sample() -> None:
    """verl's rejection sampling changes `response_mask` and leaves `loss_mask`, which its engines count."""
    batch = samples()
    rejected = batch.data["response_mask"].clone()
    rejected.values()[::2] = 0
    whole = of_verl(batch, actor(settings()))[2]["mpt/masked_fraction"].aggregate()
    batch.data["response_mask"] = rejected
    assert of_verl(batch, actor(settings()))[2]["mpt/masked_fraction"].aggregate() == whole


def test_pois_takes_what_verl_computed_again_or_without_that_the_weights_that_train() -> None:
    batch = samples()
    mask = {"mask": "dynamic", "tau": 0.99, "sigma": 0.2}
    again = of_verl(batch, actor(settings()))
    # bypass_mode: verl puts the log-probs of the rollout in the place of the old ones.
    batch.data["old_log_probs"] = batch.data["rollout_log_probs"]
    skipped = of_verl(batch, actor(settings(rollout_correction=BYPASS)))
    for found, one_update in ((again, False), (skipped, True)):
        wanted = of_objective(batch, importance="pois", one_update=one_update, **mask)
        torch.testing.assert_close(found[:2], wanted, rtol=1e-12, atol=1e-14)
    assert not torch.equal(again[1], skipped[1])
    recorded = of_verl(batch, actor(settings(rollout_correction=BYPASS, importance="sais")))
    torch.testing.assert_close(recorded[:2], of_objective(batch, importance="sais", **mask), rtol=1e-12, atol=1e-14)


def test_with_sais_verl_rejects_tokens_by_the_log_probs_of_the_rollout() -> None:
    batch = samples()
    batch.data["old_log_probs"] = batch.data["rollout_log_probs"]
    correction = BYPASS | {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.8_1.25"}
    changes = {"importance": "sais", "loss_mode": "bypass_mode", "rollout_correction": correction}
    _, found, _ = of_verl(batch, actor(settings(**changes)))
    _, kept, _ = of_verl(batch, actor(settings(importance="sais", rollout_correction=BYPASS)))
    ratio_N = (batch.logprobs.detach() - batch.columns["rollout_log_probs"]).exp()
    rejected = batch.columns["place"][(ratio_N < 0.8) | (ratio_N > 1.25)]
    assert kept[rejected].any()
    wanted = kept.index_fill(0, rejected, 0.0)
    assert wanted.any()
    assert torch.equal(found, wanted)


def test_the_micro_batch_keeps_its_values() -> None:
    batch = samples()
    batch.data["old_log_probs"] = batch.data["rollout_log_probs"]
    before = {name: batch.data[name].values().clone() for name in ("advantages", "old_log_probs")}
    of_verl(batch, actor(settings(rollout_correction=BYPASS)))
    assert all(torch.equal(batch.data[name].values(), values) for name, values in before.items())


def test_a_sample_is_correct_by_its_score_or_by_its_advantage() -> None:
    batch = samples()
    by_score = of_verl(batch, actor(settings()))[2]["mpt/positive_fraction"].aggregate()
    assert of_verl(batch, actor(settings(correct="advantage")))[2]["mpt/positive_fraction"].aggregate() == by_score
    last = batch.data["rm_scores"].offsets()[1:] - 1
    batch.data["rm_scores"].values()[last] = (
        2 * batch.rewards_B - 1
    ).float()  # 1 and -1, as verl scores DAPO's problems
    assert of_verl(batch, actor(settings()))[2]["mpt/positive_fraction"].aggregate() == by_score
    assert of_verl(batch, actor(settings(correct_score=-1.0)))[2]["mpt/positive_fraction"].aggregate() > by_score
    del batch.data["rm_scores"]
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}.correct"):
        of_verl(batch, actor(settings()))


def test_padded_batches_are_as_nested_ones() -> None:
    """verl's earlier trainer passes padded columns, and takes the lengths of the samples from an attention mask."""
    batch = samples()
    wanted = of_verl(batch, actor(settings()))
    names = ["prompts", "responses", "response_mask", "loss_mask", "rm_scores", "advantages", "old_log_probs"]
    padded = batch.data.select(*names).to_padded_tensor()
    padded["attention_mask"] = torch.cat([padded["prompts"], padded["responses"]], dim=1)  # every token is a 1 here
    width = padded["responses"].shape[1]
    tensordict_utils.assign_non_tensor(
        padded, dp_size=DP_SIZE, batch_num_tokens=TOKENS, global_batch_size=2 * B, max_response_len=width
    )
    batch.data = padded
    torch.testing.assert_close(of_verl(batch, actor(settings()))[:2], wanted[:2], rtol=1e-12, atol=1e-14)


def test_an_entropy_bonus_keeps_its_gradient_and_nothing_else_has_one() -> None:
    batch = samples()
    entropy = batch.output["entropy"].values().clone().requires_grad_()
    batch.output["entropy"] = torch.nested.nested_tensor_from_jagged(entropy, batch.output["log_probs"].offsets())
    loss, _ = losses.ppo_loss(actor(settings()), batch.output, batch.data)
    assert torch.autograd.grad(loss, entropy, allow_unused=True)[0] is None
    loss, _ = losses.ppo_loss(actor(settings(), entropy_coeff=0.5), batch.output, batch.data)
    [gradient] = torch.autograd.grad(loss, entropy)
    expected = torch.zeros_like(entropy)
    expected[batch.columns["place"]] = -0.5 * DP_SIZE / TOKENS
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", sorted(POLICY_LOSS_REGISTRY))
def test_an_advantage_of_0_leaves_a_token_out_of_every_loss_that_is_not_refused(name: str) -> None:
    random = torch.Generator().manual_seed(3)
    shape = (B, 8)
    logprobs = (-2 * torch.rand(shape, generator=random, dtype=torch.float64)).requires_grad_()
    old, mask = logprobs.detach() + 0.3 * torch.randn(shape, generator=random), torch.ones(shape)
    advantages = torch.randn((B, 1), generator=random, dtype=torch.float64).expand(shape)
    zero = torch.rand(shape, generator=random) < 0.3
    policy = VerlPolicyLossConfig(
        loss_mode=name, dro_beta=0.1, kl_cov_ratio=0.2, clip_cov_ratio=0.2, clip_cov_lb=0.0, clip_cov_ub=9.0
    )

    def gradient(advantages: Tensor) -> Tensor:
        torch.manual_seed(0)  # Clip-Cov draws tokens
        loss, _ = POLICY_LOSS_REGISTRY[name](
            old_log_prob=old, log_prob=logprobs, advantages=advantages, response_mask=mask,
            loss_agg_mode="token-mean", config=actor(policy),
        )  # fmt: skip
        return torch.autograd.grad(loss, logprobs)[0]

    kept, found = gradient(advantages), gradient(advantages.masked_fill(zero, 0))
    left_out = not found[zero].any() and torch.allclose(found[~zero], kept[~zero], rtol=1e-12, atol=0)
    assert left_out == (name not in adapter.NO_MASK)
    if not left_out:
        with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}.loss_mode"):
            settings(loss_mode=name)
        assert settings(loss_mode=name, mask="off").loss_mode == name


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("mask", {"mask": "on"}), ("correct", {"correct": "reward"}), ("importance", {"importance": "tois"}),
        ("tau", {"tau": 0.0}), ("tau", {"tau": 1.5}), ("sigma", {"sigma": -0.1}),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(key: str, changes: dict[str, Any]) -> None:
    with refused(ErrorCode.CONFIG_BAD_VALUE, key=f"{adapter.KEY}.{key}"):
        settings(**changes)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("mask", {"calculate_entropy": False}),
        ("importance", {"importance": "sais"}),
        ("importance", {"rollout_correction": BYPASS, "ppo_epochs": 2}),
        ("importance", {"rollout_correction": BYPASS, "ppo_mini_batch_size": 4}),
        ("rollout_correction", {"rollout_correction": BYPASS | {"rollout_is": "token"}}),
        ("rollout_correction", {"rollout_correction": BYPASS | {"rollout_rs": "seq_mean_k1"}, "importance": "sais"}),
        ("loss_mode", {"rollout_correction": BYPASS, "loss_mode": "bypass_mode"}),
        ("loss_mode", {"loss_mode": "bypass_mode"}),
    ],
)
def test_settings_that_exclude_each_other_are_refused(key: str, changes: dict[str, Any]) -> None:
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}.{key}"):
        settings(**changes)


def test_what_is_not_connected_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = samples()
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}._target_"):  # the loss without its settings
        of_verl(batch, actor(VerlPolicyLossConfig()))
    config = actor(settings())
    del batch.output["entropy"]
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}.mask"):
        of_verl(batch, config)
    monkeypatch.setattr(losses, "ppo_loss", adapter.verl_ppo_loss)
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}._target_"):  # the settings without the loss
        settings()
    workers = SimpleNamespace(ppo_loss=adapter.verl_ppo_loss)
    monkeypatch.setitem(sys.modules, "verl.workers.engine_workers", workers)
    with refused(ErrorCode.CONFIG_CONFLICT, key=f"{adapter.KEY}._target_"):  # too late
        adapter.install()
