"""The names that other projects may import. A change here is a change of the public interface."""

from __future__ import annotations

from importlib import import_module

import pytest

EXPORTED = {
    "ulorl": ["Config", "Result", "UserError", "build", "load", "resume", "train"],
    "ulorl.objective": [
        "LossSums", "Mismatch", "clipped_objective_sum", "engine_weights", "group_advantages", "is_informative",
        "logprob_mismatch", "masked_tokens", "mpt_tokens", "old_logprobs", "ratios", "sample_mean",
        "soft_overlong_penalty",
    ],
    "ulorl.rollout": [
        "ExperiencePool", "OpenGroup", "OversubscribeSchedule", "RefillSchedule", "Schedule", "Scheduler",
        "SegmentSchedule", "UnfinishedPool",
    ],
    "ulorl.evaluation": ["Evaluation", "EvaluationSettings", "evaluate"],
}  # fmt: skip


@pytest.mark.parametrize("package", EXPORTED)
def test_exported_names(package: str) -> None:
    module = import_module(package)
    assert sorted(module.__all__) == EXPORTED[package]
    for name in EXPORTED[package]:
        assert getattr(module, name).__doc__
