"""One long sample whose sequence several processes share, against one process that has it alone.

Both compute the log-probs of the same sample and the whole gradient of the same loss, the processes with Ulysses over
gloo; the largest difference between the two gradients is part of the result. Every number is float32, activations are
kept, and nothing but the sequence is split: each process holds all parameters and their gradients. CPU seconds are
compared, because the processes may have to share cores.
"""

from __future__ import annotations

import json
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from ulorl.bench.machine_facts import facts
from ulorl.bench.measured_processes import run_measured
from ulorl.bench.peak_memory import peak_rss
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.learner.batching import Batch, Row, collate
from ulorl.learner.logprobs import token_logprobs
from ulorl.learner.ulysses import SequenceShards
from ulorl.models.head import head_of, hidden_states

VOCABULARY = 512
HIDDEN, LAYERS, HEADS = 256, 1, 4
PROMPT = 16  # tokens
LIMIT = timedelta(hours=2)  # of the whole measurement


def run(tokens: int = 8192, processes: int = 4) -> dict[str, Any]:
    """Measure peak memory and seconds of one gradient in one process and in `processes`, and how far the two are apart.

    tokens: of the sample, prompt and output together. Raises UserError for sizes that do not fit the model.
    """
    if tokens < 2 * PROMPT:
        message = f"bench ulysses --tokens {tokens}: give {2 * PROMPT} tokens at least; {PROMPT} of them are the prompt"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--tokens")
    if processes < 2 or HEADS % processes:
        message = f"bench ulysses --processes {processes}: the model has {HEADS} attention heads; give 2 or {HEADS}"
        raise UserError(message, code=ErrorCode.BENCH_INPUT, key="--processes")
    about = facts()
    with tempfile.TemporaryDirectory() as folder:
        alone = _measured(tokens, 1, folder)[0]
        shared = _measured(tokens, processes, folder)
        expected, found = load_file(_gradients(folder, 1)), load_file(_gradients(folder, processes))
    apart = max(float((found[name] - g).abs().max() / g.abs().max()) for name, g in expected.items())
    return {
        "benchmark": "ulysses",
        **about,
        "model": f"Qwen3, layers {LAYERS}, hidden {HIDDEN}, {HEADS} heads, vocabulary {VOCABULARY}, float32",
        "tokens": tokens,
        "alone": alone,
        "shared": shared,
        "gradient_difference": apart,
    }


def _gradients(folder: str, processes: int) -> Path:
    return Path(folder) / f"gradients-{processes}.safetensors"


def _measured(tokens: int, processes: int, folder: str) -> list[dict[str, Any]]:
    """Return the figures of each process, measured in new processes, because peak memory is that of a process."""
    code = "from ulorl.bench.ulysses_bench import gradient; gradient({}, {}, {}, {!r})"
    codes = [code.format(tokens, rank, processes, folder) for rank in range(processes)]
    return run_measured(codes, limit=LIMIT.total_seconds(), what=f"{tokens} tokens in {processes} processes")


def gradient(tokens: int, rank: int, processes: int, folder: str) -> None:
    """Compute the gradient of one sample as one of `processes`, print this process's figures as JSON, and write the
    whole gradient into the folder."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store-{processes}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=processes, timeout=LIMIT)
    model, batch = _small_model(tokens), _batch(tokens)
    shards = SequenceShards(model, dist.new_group(), "sdpa") if processes > 1 else None
    dist.barrier()
    before, started, used = peak_rss(), time.perf_counter(), time.process_time()
    (_logprobs(model, batch, shards).exp().sum() / tokens).backward()  # type: ignore[no-untyped-call]
    seconds, cpu_seconds, peak = time.perf_counter() - started, time.process_time() - used, peak_rss()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for grad in grads.values():
        dist.all_reduce(grad)
    if rank == 0:
        save_file(grads, _gradients(folder, processes))
    dist.barrier()
    dist.destroy_process_group()
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
    print(json.dumps({**times, "before_bytes": before, "peak_bytes": peak}))


def _logprobs(model: Qwen3ForCausalLM, batch: Batch, shards: SequenceShards | None) -> Tensor:
    part = shards.split(batch) if shards else None
    own = part or batch
    hidden_BSH = hidden_states(model, own.input_ids, None, own.position_ids)
    hidden_NH = hidden_BSH.flatten(0, 1)[own.source_N]
    logprobs_N, entropy_N = token_logprobs(hidden_NH, head_of(model), own.targets_N, 1.0)
    return shards.gather(part, logprobs_N, entropy_N)[0] if shards and part else logprobs_N


def _small_model(length: int) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=3 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=2, head_dim=16, max_position_embeddings=length,
            tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip


def _batch(length: int) -> Batch:
    random = np.random.default_rng(0)
    prompt, output = np.split(random.integers(0, VOCABULARY, length).astype(np.int32), [PROMPT])
    row = Row(prompt, output, np.zeros(len(output), np.float32), np.zeros(len(output), np.int32))
    return collate([row], 0, "cpu")
