"""Two processes train as one does."""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="the adapter needs TRL (extra trl)")

from processes import run_processes
from trl_loops import SOURCE, train
from ulorl.adapters.trl import UloRLTrainer


def test_two_processes_train_as_one() -> None:
    """Denominator, gradient and metrics of 16 samples of 3 to 11 tokens, in two accumulated micro-batches of 8 in one
    process, and of 4 in each of two, which have different numbers of tokens."""
    tokens, metrics, weights = trained(1)
    of_ranks = run_processes(in_rank, 2)
    assert len({sum(counts) for counts, _, _ in of_ranks}) == 2
    assert sum(sum(counts) for counts, _, _ in of_ranks) == sum(tokens)
    for expected, found in zip(metrics, of_ranks[0][1], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    for _, _, found_weights in of_ranks:
        for name, weight in weights.items():
            np.testing.assert_allclose(found_weights[name], weight, rtol=1e-4, atol=1e-6)
    assert any(log["mpt/masked_fraction"] > 0 for log in metrics)


def in_rank() -> Any:
    rank = str(torch.distributed.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    return trained(2)


def trained(world: int) -> tuple[list[int], list[dict[str, float]], dict[str, np.ndarray]]:
    """The trained tokens of each micro-batch, what was logged after each of two updates, and the weights after them."""
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "mpt_tau": 0.05, "mpt_sigma": 1.0}
    if world > 1:
        settings["ddp_backend"] = "gloo"
    updates, logs, trainer = train(
        UloRLTrainer, rollout_func=drawn, per_device_train_batch_size=8 // world, max_steps=2, **settings
    )
    counts = [
        int((batch["completion_mask"].bool() & batch["trained"][:, None]).sum())
        for update in updates
        for batch in update.batches
    ]
    metrics = [
        {name: log[name] for name in log if name == "loss" or name.startswith(("mpt/", "entropy/", "importance/"))}
        for log in logs
    ]
    return counts, metrics, {name: p.detach().numpy() for name, p in trainer.model.named_parameters()}


def drawn(prompts: list[str], _: Any) -> dict[str, Any]:
    """Outputs that depend on the prompt and on the place in its group of 4 alone."""
    ids = []
    for i, prompt in enumerate(prompts):
        rng = np.random.default_rng(zlib.crc32(f"{prompt}{i % 4}".encode()))
        ids.append(rng.integers(1, 80, rng.integers(3, 12)).tolist())
    return {
        "prompt_ids": [SOURCE.tokenizer(prompt)["input_ids"] for prompt in prompts],
        "completion_ids": ids,
        "logprobs": [[-1.0] * len(one) for one in ids],
    }
