"""What the adapter refuses, its metrics, and evaluation and adapters of peft."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient

from refusals import refused
from small_models import make
from trl_loops import SETTINGS, SOURCE, build, even, train
from ulorl.adapters.trl import UloRLConfig, UloRLTrainer, supported
from ulorl.adapters.trl.refusals import check_trainer
from ulorl.adapters.trl.update_means import SUMS, update_means
from ulorl.error_codes import ErrorCode
from ulorl.errors import CombinedError


def config(**settings: Any) -> UloRLConfig:
    return UloRLConfig(output_dir=str(Path.cwd()), **{**SETTINGS, **settings})


VLLM = {"use_vllm": True, "vllm_importance_sampling_correction": False}
CONFLICTS: list[dict[str, Any]] = [
    {"loss_type": "grpo"}, {"loss_type": "cispo"}, {"importance_sampling_level": "sequence"}, {"beta": 0.01},
    {"delta": 3.0}, {"top_entropy_quantile": 0.2}, {"entropy_coef": 0.01}, {"use_adaptive_entropy": True},
    {"off_policy_mask_threshold": 0.5}, {"use_liger_kernel": True}, {"steps_per_generation": 3},
    {"vllm_importance_sampling_correction": True, "use_vllm": True, "importance": "sais"},
    {"mpt_correct_function": "even", "mpt_correct": "advantage"},
    *({**part, **VLLM, "importance": "sais"} for part in ({"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1},
      {"repetition_penalty": 1.1}, {"generation_kwargs": {"temperature": 0.6}})),
]  # fmt: skip
BAD: list[dict[str, Any]] = [
    {"mpt_mask": "on"}, {"mpt_correct": "yes"}, {"importance": "tois"}, {"mpt_tau": 0.0}, {"mpt_tau": 1.1},
    {"mpt_tau": float("nan")}, {"mpt_sigma": -0.1}, {"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon_high": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", CONFLICTS, ids=lambda settings: "-".join(settings))
def test_settings_that_contradict_the_objective_are_refused(settings: dict[str, Any]) -> None:
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


def test_sais_takes_other_ways_of_sampling_that_change_nothing() -> None:
    plain = config(**VLLM, importance="sais", top_k=-1, min_p=0.0, generation_kwargs={"top_p": 1.0, "seed": 3})
    assert plain.importance == "sais"
    config(importance="pois", top_p=0.9)


NO_MODEL = "not/a-model"  # refusals that come before a model is loaded


@pytest.mark.parametrize("mode", ["raw_logprobs", "processed_logprobs"])
def test_sais_is_refused_where_vllms_server_returns_raw_log_probs(
    mode: str, trainer: UloRLTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the server's `/server_info`, read as TRL's client reads it."""
    info = {"vllm_config": {"model_config": {"logprobs_mode": mode}}}
    client = VLLMClient.__new__(VLLMClient)  # the constructor waits for a server
    client.base_url, client.session = "http://localhost:8000", _Session(info)
    monkeypatch.setattr(trainer, "vllm_generation", SimpleNamespace(vllm_client=client), raising=False)
    for name, value in {**VLLM, "importance": "sais", "vllm_mode": "server"}.items():
        monkeypatch.setattr(trainer.args, name, value)
    if mode == "processed_logprobs":
        check_trainer(trainer)
        return
    with refused(ErrorCode.CONFIG_CONFLICT, key="vllm_mode"):
        check_trainer(trainer)


class _Session:
    """Answers every request with one JSON value."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value

    def get(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(status_code=200, json=lambda: self.value)


def test_a_trainer_refuses_what_does_not_go_with_it() -> None:
    with refused(ErrorCode.CONFIG_BAD_VALUE, key="args"):
        build(UloRLTrainer, args=GRPOConfig(output_dir=str(Path.cwd()), **SETTINGS))
    with refused(ErrorCode.CONFIG_BAD_VALUE, key="args") as caught:
        UloRLTrainer(NO_MODEL, even)
    assert "args: is missing; give a ulorl.adapters.trl.UloRLConfig" in str(caught.value)
    with refused(ErrorCode.CONFIG_CONFLICT, key="mpt_correct_function"):
        build(UloRLTrainer, mpt_correct_function="odd")
    with refused(ErrorCode.CONFIG_CONFLICT, key="importance"):
        build(UloRLTrainer, importance="sais", model=NO_MODEL)
    mixture = make("Qwen3Moe", vocab_size=SOURCE.vocabulary)
    with refused(ErrorCode.CONFIG_CONFLICT, key="router_aux_loss_coef"):
        build(UloRLTrainer, model=mixture, processing_class=SOURCE.tokenizer)


def test_sharding_that_accelerate_launch_set_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    args = config()
    assert not args.fsdp
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", FullyShardedDataParallelPlugin(), raising=False)
    with refused(ErrorCode.CONFIG_CONFLICT, key="fsdp") as caught:
        build(UloRLTrainer, args=args)
    assert "accelerate launch" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "state"),
    [("deepspeed", "is_deepspeed_enabled"), ("model", "is_distributed_loading_by_transformers")],
)
def test_a_head_in_parts_is_refused(
    key: str, state: str, trainer: UloRLTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, state, True)
    with refused(ErrorCode.CONFIG_CONFLICT, key=key):
        check_trainer(trainer)


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


@pytest.fixture
def trainer() -> UloRLTrainer:
    """For each test: a trainer that is refused leaves the state of accelerate, which all share, without a device."""
    return build(UloRLTrainer)


def test_evaluation_logs_the_same_metrics(trainer: UloRLTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means over the evaluated batches, each of all its completion tokens."""
    batches: list[dict[str, Any]] = []
    compute_loss = trainer._compute_loss
    monkeypatch.setattr(
        trainer, "_compute_loss", lambda model, inputs: batches.append(inputs) or compute_loss(model, inputs)
    )
    monkeypatch.setattr(trainer.args, "mpt_tau", 0.9)
    logged = trainer.evaluate(trainer.train_dataset)
    tokens, entropies, mpts = [], [], []
    for batch in batches:
        ids, mask = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        scored_BT = batch["completion_mask"].bool()
        with torch.no_grad():
            logprobs_BT, entropy_BT, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, mask, scored_BT.shape[1], compute_entropy=True
            )
        tokens.append(int(scored_BT.sum()))
        entropies.append(float(entropy_BT[scored_BT].mean()))
        mpts.append(float(((logprobs_BT.exp() >= 0.9) & batch["correct"][:, None])[scored_BT].float().mean()))
    assert len(batches) > 1
    assert logged["eval_train/tokens"] == pytest.approx(np.mean(tokens))
    assert logged["eval_entropy/mean"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert logged["eval_mpt/fraction"] == pytest.approx(np.mean(mpts), abs=1e-6)
    assert logged["eval_mpt/fraction"] > 0
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


def test_the_adapter_overrides_methods_that_trl_has() -> None:
    for name in ("_calculate_rewards", "_generate_and_score_completions", "_prepare_inputs", "_compute_loss"):
        assert name in vars(UloRLTrainer)
        assert name in vars(GRPOTrainer)
