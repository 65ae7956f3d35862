"""Makes the tiny reasoner from nothing: a Qwen3 model of 0.8 million parameters, warmed up on search traces.

The warm-up is plain supervised learning on honest traces of the training problems, stopped early: reinforcement
learning has something to add because the search is still clumsy, not because anything was damaged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ulorl.tiny import task, tokenizer

CONTEXT = 1024  # tokens a position exists for
LONGEST_TRACE = 512  # tokens; longer ones are left out of the warm-up
BATCH_TOKENS = 2048  # of one step, padding included
CHUNK = 512  # traces sorted by length together, so that batches hold little padding
IGNORED = -100


@dataclass(frozen=True)
class Made:
    """What the warm-up brought."""

    loss: float  # nats a token, mean over the last tenth of the steps
    accuracy: float  # share of held-out problems answered right, sampled at temperature 1
    truncated: float  # share that reached `max_tokens`
    tokens: int  # trained on


def build_model(vocabulary: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """The untrained model; its weights depend on `seed` only."""
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary.eos_token_id, pad_token_id=vocabulary.pad_token_id, do_sample=True
    )
    return model


def batches(vocabulary: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: token ids and labels, [B, T] each, padded on the right; prompts and padding are not trained on."""
    while True:
        examples = []
        for problem in task.training_stream(CHUNK, rng):
            prompt, output = vocabulary([problem.prompt, task.search_trace(problem, rng)]).input_ids
            output.append(vocabulary.eos_token_id)
            if len(output) <= LONGEST_TRACE:
                examples.append((prompt + output, [IGNORED] * len(prompt) + output))
        examples.sort(key=lambda example: len(example[0]))
        cut: list[list[tuple[list[int], list[int]]]] = [[]]
        for example in examples:
            if (len(cut[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        for batch in cut:
            yield _padded([x for x, _ in batch], vocabulary.pad_token_id), _padded([y for _, y in batch], IGNORED)


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=filler)


def warm_up(model: Qwen3ForCausalLM, data: Iterator[tuple[Tensor, Tensor]], steps: int, *, lr=6e-3, lr2=3e-3, log=None, decay=True) -> Iterator[tuple[float, int]]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not m for m in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, momentum=0.95),
        torch.optim.AdamW(others, lr=lr2, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    f = lambda s: min(1, (s + 1) / 20) * (1 - 0.9 * s / steps if decay else 1)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, f) for o in optimizers]
    for _ in range(steps):
        tokens, labels = next(data)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()
        for o, s in zip(optimizers, schedules):
            o.step(); s.step(); o.zero_grad()
        yield loss.item(), int((labels != IGNORED).sum())
