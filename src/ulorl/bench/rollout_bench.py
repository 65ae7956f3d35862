"""Decodes one sample to its global maximum length in segments with the embedded engine, and checks that it is complete.

A Qwen3 of one layer with random weights that never ends an output by itself, so that the sample is carried over until
the maximum truncates it. Every segment begins with a prefill of all tokens so far.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from ulorl.bench.machine_facts import facts
from ulorl.engines.decode import scheduled_rollout
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.rollout.scheduler import Scheduler
from ulorl.rollout.schedules import SegmentSchedule
from ulorl.types import Problem, Sampling, Scored, Status

PROMPT = 16


def run(tokens: int = 4096, segments: int = 8) -> dict[str, Any]:
    """Measure the seconds of each segment. Raises RuntimeError when a token, a log-prob or a version of the sample is
    missing, UserError when the segments do not divide the tokens."""
    if tokens < segments or tokens % segments:
        message = f"bench rollout --tokens {tokens}: give a multiple of the {segments} segments"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")
    about = facts()
    engine = TorchEngine(_model(tokens + PROMPT), eos_ids=(), slots=1, prefill_tokens=8192)
    schedule = SegmentSchedule(prompts=1, group=1, tokens=tokens // segments)
    scheduler = Scheduler(schedule, max_tokens=tokens, sampling=Sampling(0.85), seed=0)
    new = [(Problem("0", "?"), np.arange(PROMPT, dtype=np.int32))]
    steps = []
    for version in range(segments):
        engine.version = version
        started, before = time.perf_counter(), engine.stats.prefill_tokens
        scheduler.begin_step(new)
        (sample,) = [scheduler.end_segment(s) for s in scheduled_rollout(engine, scheduler.next_requests)]
        new = []
        steps.append(
            {
                "seconds": round(time.perf_counter() - started, 2),
                "tokens": len(sample),
                "prefilled": engine.stats.prefill_tokens - before,
            }
        )
    scheduler.experience.add(Scored(sample, 0.0, ""))
    ((member,),) = [group.members for group in scheduler.release()]
    whole = member.sample
    expected = np.repeat(np.arange(segments), tokens // segments)
    if (
        whole.status is not Status.TRUNCATED
        or not len(whole.tokens) == len(whole.logprobs) == len(whole.versions) == tokens
        or not np.array_equal(whole.versions, expected)
        or not np.isfinite(whole.logprobs).all()
        or len(scheduler.unfinished)
    ):
        raise RuntimeError(f"the sample did not arrive whole: {len(whole)} of {tokens} tokens, {whole.status}")
    return {"benchmark": "rollout", **about, "tokens": tokens, "segments": steps}


def _model(context: int) -> Qwen3ForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
                num_key_value_heads=1, head_dim=32, max_position_embeddings=context, tie_word_embeddings=True,
                bos_token_id=None, eos_token_id=None,
            )
        ).eval()  # fmt: skip
