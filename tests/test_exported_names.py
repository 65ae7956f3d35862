"""The names that other projects may import. A change here is a change of the public interface."""

from __future__ import annotations

from importlib import import_module

import pytest

EXPORTED = {
    "ulorl.adapters.trl": ["UloRLConfig", "UloRLTrainer"],
    "ulorl": ["Config", "Result", "UserError", "build", "load", "resume", "train"],
    "ulorl.objective": [
        "LossSums", "Mismatch", "adapted_coefficient", "cispo_objective_sum", "clip_cov_tokens",
        "clipped_objective_sum", "covariances", "engine_kept", "engine_weights", "entropy_bonus", "group_advantages",
        "gspo_objective_sum", "is_informative", "kl_cov_penalty_sum", "kl_cov_tokens", "logprob_mismatch",
        "masked_tokens", "mpt_tokens", "old_logprobs", "ratios", "sample_mean", "smallest_prefix_ratio",
        "soft_overlong_penalty", "top_entropy_tokens",
    ],
    "ulorl.rollout": [
        "ExperiencePool", "OpenGroup", "OversubscribeSchedule", "RefillSchedule", "Schedule", "Scheduler",
        "SegmentSchedule", "UnfinishedPool",
    ],
    "ulorl.evaluation": ["Evaluation", "EvaluationSettings", "evaluate"],
}  # fmt: skip


@pytest.mark.parametrize("package", EXPORTED)
def test_exported_names(package: str) -> None:
    if package == "ulorl.adapters.trl":
        pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")
    module = import_module(package)
    assert sorted(module.__all__) == EXPORTED[package]
    for name in EXPORTED[package]:
        assert getattr(module, name).__doc__
