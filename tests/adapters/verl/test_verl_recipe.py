"""The recipe for verl: its settings in verl's configuration, and an update of verl's own FSDP2 worker with them."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl", reason="`make test-verl` runs these")

import torch
import verl
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config
from verl.workers.utils import losses

import verl_worker
from paths import ROOT
from ulorl.adapters import verl as adapter
from ulorl.objective import clipped_objective_sum, masked_tokens

RECIPE = ROOT / "recipes" / "verl"
CORRECTION = "algorithm.rollout_correction"
OVERRIDES = re.findall(r"^ +([\w.]+=[^\s\"]+) \\$", (RECIPE / "run.sh").read_text(), flags=re.MULTILINE)


def composed(*overrides: str) -> DictConfig:
    """Return the configuration of run.sh, without the paths that it takes from the environment."""
    with initialize_config_dir(str(RECIPE), version_base=None):
        return compose("dmmpts", overrides=[*OVERRIDES, *overrides])


def test_verl_accepts_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ppo_loss", adapter.ppo_loss)
    config = composed("actor_rollout_ref.actor.policy_loss.sigma=0.3")
    assert len(OVERRIDES) > 15
    with pytest.warns(UserWarning, match="Disabled critic"):  # GRPO has none
        validate_config(config, need_reference_policy(config), need_critic(config))
    assert not need_reference_policy(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert isinstance(actor.policy_loss, adapter.PolicyLossConfig)
    assert (actor.policy_loss.sigma, actor.policy_loss.train_batch_size) == (0.3, 128)
    assert (actor.loss_agg_mode, actor.ppo_mini_batch_size) == ("token-mean", 128)
    assert actor.engine.entropy_checkpointing
    assert config.actor_rollout_ref.rollout.temperature == 0.85
    groups = omega_conf_to_dataclass(config.algorithm).filter_groups
    assert (groups.enable, groups.metric) == (True, "reward")  # the scores, before any KL penalty


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a shell where `python` prints its arguments, one a line."""
    (folder / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (folder / "python").chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_variable_of_the_command_in_the_page_reaches_verl(tmp_path: Path) -> None:
    [command] = re.findall(
        r"^.*bash recipes/verl/run\.sh.*$", (ROOT / "docs" / "verl.md").read_text(), flags=re.MULTILINE
    )
    arguments = run_command(command, tmp_path).stdout.splitlines()
    values = dict(re.findall(r"([A-Z_]+)=(\S+)", command))
    assert values.keys() == {"MODEL", "TRAIN_FILES", "VAL_FILES"}
    wanted = {
        f"actor_rollout_ref.model.path={values['MODEL']}",
        f"data.train_files={values['TRAIN_FILES']}",
        f"data.val_files={values['VAL_FILES']}",
    }
    assert wanted <= set(arguments)
    for name in ("TRAIN_FILES", "VAL_FILES"):
        refusal = run_command(re.sub(f"{name}=\\S+", "", command), tmp_path)
        assert refusal.returncode != 0
        assert f"{name}: set it to" in refusal.stderr
        assert not refusal.stdout


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["actor_rollout_ref.actor.calculate_entropy=false"], "calculate_entropy=true"),
        ([f"{CORRECTION}.bypass_mode=true", f"{CORRECTION}.rollout_is=token"], f"{CORRECTION}.rollout_is=null"),
        (["actor_rollout_ref.actor.policy_loss.tau=2"], "at most 1"),
    ],
)
def test_verl_refuses_a_recipe_with_settings_that_exclude_each_other(
    overrides: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ppo_loss", adapter.ppo_loss)
    with pytest.raises(InstantiationException, match=problem):
        omega_conf_to_dataclass(composed(*overrides).actor_rollout_ref.actor)


def test_an_update_of_verls_worker_has_loss_and_gradient_of_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ppo_loss", adapter.verl_ppo_loss)  # restored afterwards
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "ulorl.adapters.verl_plugin")
    importlib.reload(verl)  # imports the plugin, as in each process of verl
    assert losses.ppo_loss is adapter.ppo_loss
    verl_worker.use_cpu(monkeypatch)
    metrics, gradients = verl_worker.update(composed(*verl_worker.SETTINGS).actor_rollout_ref)

    model = AutoModelForCausalLM.from_pretrained(verl_worker.MODEL, attn_implementation="eager")
    loss, masked_N, entropy_N = of_objective(model)
    loss.backward()
    assert 0 < masked_N.sum() < len(masked_N)
    assert metrics["actor/pg_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert metrics["mpt/masked_fraction"] == pytest.approx(float(masked_N.float().mean()))
    assert metrics["entropy/mean"] == pytest.approx(float(entropy_N.mean()), rel=1e-5)
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


def of_objective(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return loss, masked tokens and entropies of the same batch by the functions of `ulorl.objective`."""
    all_ids, old = verl_worker.samples()
    logprobs, entropies = [], []
    for ids, prompt in zip(all_ids, verl_worker.PROMPTS, strict=True):
        all_TV = torch.log_softmax(model(ids[None]).logits[0, prompt - 1 : -1] / verl_worker.TEMPERATURE, dim=-1)
        logprobs.append(all_TV.gather(1, ids[prompt:, None])[:, 0])
        entropies.append(-(all_TV.exp() * all_TV).sum(1).detach())
    lengths = torch.tensor(verl_worker.OUTPUTS)
    logprobs_N, entropy_N = torch.cat(logprobs), torch.cat(entropies)
    sample_N = torch.arange(len(lengths)).repeat_interleave(lengths)
    correct_B = torch.tensor(verl_worker.REWARDS) == 1
    masked_N = masked_tokens(
        logprobs_N, entropy_N, sample_N, correct_B, mask="dynamic", tau=verl_worker.TAU, sigma=verl_worker.SIGMA
    )
    advantages_N = torch.tensor(verl_worker.ADVANTAGES)[sample_N]
    loss_sum, _ = clipped_objective_sum(
        logprobs_N, torch.cat(old), advantages_N, ~masked_N, clip_low=0.2, clip_high=0.2
    )
    return loss_sum / len(logprobs_N), masked_N, entropy_N
