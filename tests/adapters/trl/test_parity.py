"""The adapter against our learner, and, with everything off, against TRL itself, in TRL's own training loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from trl import GRPOTrainer

from trl_loops import SETTINGS, SOURCE, Update, train
from ulorl.adapters.trl import UloRLTrainer
from ulorl.adapters.trl.update_means import SUMS
from ulorl.config.training_config import ObjectiveConfig, OptimConfig
from ulorl.learner.batching import Row
from ulorl.learner.experience import Experience
from ulorl.learner.policy_learner import LearnerSpec, PolicyLearner, one_device_learner
from ulorl.learner.update_result import UpdateSums
from ulorl.learner.update_start import UpdateStart
from ulorl.models.model_loading import load_model

# Of the 32 samples of the first generation, DMMPTs mask tokens of some correct ones and not of others.
MASKS = {"mpt_mask": "dynamic", "mpt_tau": 0.9, "mpt_sigma": 0.3}
OFF = {"mpt_mask": "off", "dynamic_sampling": False}
METRICS = (
    "entropy/mean", "mpt/fraction", "mpt/masked_fraction", "mpt/entropy_share", "importance/ratio_mean",
    "importance/clip_fraction",
)  # fmt: skip


def our_learner(weights: dict[str, torch.Tensor], **objective: Any) -> PolicyLearner:
    """Our learner with these weights, for one mini-batch of any size whose gradient is not clipped."""
    model = load_model(SOURCE, dtype=torch.float32, device="cpu")
    model.load_state_dict(weights, strict=False)
    spec = LearnerSpec(
        OptimConfig(microbatch_tokens=200, grad_clip=1e9), ObjectiveConfig(**objective), SETTINGS["temperature"],
        max_tokens=SETTINGS["max_completion_length"], pad_id=SOURCE.tokenizer.pad_token_id,
    )  # fmt: skip
    return one_device_learner(model, spec)


def rows(update: Update) -> tuple[list[Experience], list[np.ndarray] | None]:
    """The trained samples of an update as our learner takes them, and their log-probs at the start of the update."""
    experience, starts = [], []
    for batch in update.batches:
        for i in np.flatnonzero((batch["trained"] & batch["completion_mask"].any(1)).numpy()):  # some may be truncated
            output = batch["completion_mask"][i].bool()
            recorded = batch.get("sampling_per_token_logps", torch.zeros_like(batch["completion_ids"]).float())
            row = Row(
                batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].numpy().astype(np.int32),
                batch["completion_ids"][i][output].numpy().astype(np.int32),
                recorded[i][output].numpy(),
                np.zeros(int(output.sum()), np.int32),
            )
            experience.append(
                Experience(row, len(experience), float(batch["advantages"][i]), bool(batch["correct"][i]))
            )
            if (start := batch.get("old_per_token_logps")) is not None:
                starts.append(start[i][output].numpy())
    return experience, starts or None


def check_update(update: Update, logged: dict[str, float], **objective: Any) -> None:
    """Loss, gradient and metrics of one gradient update are those of our learner for the same samples."""
    ours = our_learner(update.weights, **objective)
    experience, start = rows(update)
    sums = UpdateSums()
    assert isinstance(ours._gradient(experience, UpdateStart(logprobs=start), sums), float)
    assert sum(update.losses) == pytest.approx(sums.loss / sums.tokens, abs=1e-6)
    means = sums.means()
    assert {name: logged[name] for name in METRICS} == pytest.approx({name: means[name] for name in METRICS}, abs=1e-6)
    assert logged["train/tokens"] == sums.tokens
    for name, parameter in ours.model.named_parameters():
        size = float(parameter.grad.abs().max())
        torch.testing.assert_close(update.gradient[name], parameter.grad, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("generation_steps", [2, 4])
def test_an_update_is_that_of_our_learner(generation_steps: int) -> None:
    """With 2 generation steps each generation is one update of two accumulated micro-batches, whose old policy is the
    present one. With 4 it is two updates, and the second one's ratios are to the weights before the first."""
    updates, logs, _ = train(UloRLTrainer, steps_per_generation=generation_steps, max_completion_length=30, **MASKS)
    assert [len(update.batches) for update in updates] == [2, 2]
    for update, logged in zip(updates, logs, strict=True):
        check_update(update, logged, importance="pois", mpt={"mask": "dynamic", "tau": 0.9, "sigma": 0.3})
    assert any(0 < log["mpt/masked_fraction"] < log["mpt/fraction"] for log in logs)  # the case is not empty
    assert any(not batch["trained"].all() for update in updates for batch in update.batches)
    if generation_steps == 4:
        assert logs[1]["importance/clip_fraction"] > 0.01


def test_generations_trained_twice_without_truncated_samples_are_those_of_our_learner() -> None:
    """Both updates train the same 16 samples, with gradient checkpointing, and with POIS the second one's ratios are to
    the weights before the first."""
    settings = {"num_iterations": 2, "mask_truncated_completions": True, "gradient_checkpointing": True}
    updates, logs, _ = train(UloRLTrainer, max_completion_length=30, **settings, **MASKS)
    for update, logged in zip(updates, logs, strict=True):
        check_update(update, logged, importance="pois", mpt={"mask": "dynamic", "tau": 0.9, "sigma": 0.3})
    assert logs[0]["importance/ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert logs[1]["importance/clip_fraction"] > 0.01
    first, second = ([batch["completion_ids"] for batch in update.batches] for update in updates)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    cut = [~batch["completion_mask"].any(1) & batch["trained"] for batch in updates[0].batches]
    assert 0 < torch.cat(cut).sum() < 16


def test_sais_takes_the_log_probs_that_the_rollout_recorded() -> None:
    updates, logs, _ = train(UloRLTrainer, importance="sais", rollout_func=drawn_elsewhere, **MASKS)
    for update, logged in zip(updates, logs, strict=True):
        check_update(update, logged, importance="sais", mpt={"mask": "dynamic", "tau": 0.9, "sigma": 0.3})
    assert logs[0]["importance/clip_fraction"] > 0.1


def drawn_elsewhere(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Outputs of 3 to 9 tokens from another policy, with its log-probs."""
    rng = np.random.default_rng(len(trainer.state.log_history))
    lengths = rng.integers(3, 10, len(prompts))
    return {
        "prompt_ids": [SOURCE.tokenizer(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": [rng.integers(1, 80, length).tolist() for length in lengths],
        "logprobs": [(-3 * rng.random(length)).tolist() for length in lengths],
    }


def test_with_everything_off_it_trains_as_trl_does() -> None:
    """Two generations of one update each: the second is drawn from the weights that the first update made. Plain SGD,
    because AdamW's first step makes a whole step of a gradient that is float noise."""
    settings = {"optim": "sgd", "learning_rate": 0.1, "max_completion_length": 20}
    theirs, their_logs, trl = train(GRPOTrainer, **settings)
    ours, our_logs, trainer = train(UloRLTrainer, **settings, **OFF)
    for one, other, their_log, our_log in zip(theirs, ours, their_logs, our_logs, strict=True):
        assert one.losses == pytest.approx(other.losses, abs=1e-6)
        assert their_log["entropy"] == pytest.approx(our_log["entropy/mean"], abs=1e-2)  # theirs: mean of micro-batches
        assert their_log["num_tokens"] == our_log["num_tokens"]
    assert theirs[0].losses != theirs[1].losses
    for name, parameter in trl.model.named_parameters():
        torch.testing.assert_close(trainer.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)


def test_any_split_into_micro_batches_is_one_big_batch() -> None:
    """Completions and the denominator are those of 16 samples, however they are accumulated."""
    found = []
    for size, accumulated in ((16, 1), (4, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 1}
        updates, logs, _ = train(UloRLTrainer, max_completion_length=30, **settings, **{**MASKS, "mpt_sigma": 0.5})
        found.append((sum(updates[0].losses), {name: logs[0][name] for name in METRICS}, updates[0].gradient))
    (loss, metrics, gradient), (split_loss, split_metrics, split_gradient) = found
    assert split_loss == pytest.approx(loss, abs=1e-6)
    assert split_metrics == pytest.approx(metrics, abs=1e-6)
    assert metrics["mpt/masked_fraction"] > 0
    for name, tensor in gradient.items():
        torch.testing.assert_close(split_gradient[name], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()))


def test_trls_correction_of_vllm_is_our_truncated_importance_sampling() -> None:
    """TRL hands over min(p_old / p_engine, cap) for each token, as it computes it with `token_truncate`; here from
    made-up log-probs of an engine, because vLLM is not there."""
    updates, _, trainer = train(UloRLTrainer, steps_per_generation=4, **MASKS)
    update, old = updates[1], "old_per_token_logps"
    for batch in update.batches:
        noise = torch.randn(batch[old].shape, generator=torch.Generator().manual_seed(0))
        batch["sampling_per_token_logps"] = batch[old] + 0.5 * noise
        batch["importance_sampling_ratio"] = (batch[old] - batch["sampling_per_token_logps"]).exp().clamp(max=1.5)
    trainer.model.load_state_dict(update.weights, strict=False)
    losses = [float(UloRLTrainer._compute_loss(trainer, trainer.model, batch).detach()) for batch in update.batches]
    mpt = {"mask": "dynamic", "tau": 0.9, "sigma": 0.3}
    ours, (experience, start), sums = our_learner(update.weights, tis_cap=1.5, mpt=mpt), rows(update), UpdateSums()
    ours._gradient(experience, UpdateStart(logprobs=start), sums)
    assert sum(losses) == pytest.approx(sums.loss / sums.tokens, abs=1e-6)
    assert sum(losses) != pytest.approx(sum(update.losses), abs=1e-3)
    trainer._one_update, trainer._sums = True, None  # then the log-probs that TRL computed for its ratios are not used
    for batch in update.batches:
        UloRLTrainer._compute_loss(trainer, trainer.model, {**batch, old: batch[old] - 0.1})
    trainer._log_update(torch.zeros(len(SUMS), dtype=torch.float64), weighted=True)
    assert trainer._metrics["train"]["importance/ratio_mean"][-1] == 1
