"""Which keys a resumed run may change."""

from __future__ import annotations

from ulorl.config.resumable_keys import may_change, resumable_keys

KEYS = {
    "steps", "run.checkpoint_every", "run.keep_last", "run.keep_every", "run.async_checkpoint", "eval.every", "log",
    "optim.sequence_parallel",
    "optim.lr", "optim.max_skipped", "backend", "rollout.schedule", "rollout.segments",
    "engine.tolerance", "engine.max_faults", "engine.deadline", "reward.timeout", "reward.workers",
    "reward.retries", "reward.max_unscored", "reward.verifier.base_url", "reward.verifier.api_key_env",
    "reward.verifier.concurrency", "reward.verifier.timeout", "reward.verifier.retries",
    "reward.verifier.max_failures", "reward.verifier.cache",
}  # fmt: skip


def test_these_keys_may_change() -> None:
    assert set(resumable_keys()) == KEYS
    assert len(resumable_keys()) == len(KEYS)


def test_the_keys_of_a_section_may_change_with_it() -> None:
    assert may_change("log.progress")
    assert not may_change("steps_2")
    assert not may_change("reward.verifier.engine.deadline")
