"""Makes the tiny reasoner from nothing: a Qwen3 model of 0.8 million parameters, warmed up on search traces.

The warm-up is plain supervised learning on the training problems, stopped after STEPS of the SCHEDULE's steps. What
reinforcement learning adds later is arithmetic that is still unsure and a search that is still clumsy; nothing was
damaged on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from ulorl.common.progress import ProgressBars
from ulorl.data import countdown
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_prompts
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.errors import UserError
from ulorl.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from ulorl.rewards.scorer import Scorer
from ulorl.rewards.tasks import CountdownReward
from ulorl.rng import Stream, generator
from ulorl.types import Problem, Sampling
from ulorl.warmup import countdown_tokenizer

STEPS = 400  # of the shipped model
SCHEDULE = 700  # steps of the whole warm-up, at whose end the learning rates are at their floor
CONTEXT = 1024  # tokens
LONGEST_OUTPUT = 512  # tokens; longer traces are left out of the warm-up
BATCH_TOKENS = 2048  # of one step, padding included
CHUNK = 512  # traces sorted by length together, so that batches hold little padding
MUON_LR, ADAMW_LR = 6e-3, 3e-3  # matrices; embedding and norms
RISE, FLOOR = 20, 0.1  # the rates rise over RISE steps and fall linearly to the share FLOOR
IGNORED = -100  # label of a token that is not trained on

Example = tuple[Tensor, Tensor]  # tokens and labels, [T] each


@dataclass(frozen=True)
class Made:
    """What the warm-up brought."""

    loss: float  # nats a token, mean of the last tenth of the steps
    tokens: int  # trained on
    evaluation: Evaluation  # on held-out problems, one sample each at temperature 1


def make(
    out: Path, *, seed: int = 0, steps: int = STEPS, problems: int = 500, max_tokens: int = 384, progress: bool = True
) -> Made:
    """Train the model for `steps` steps and save it in `out` as a transformers folder.

    The same seed, steps and machine give the same weights. At the end `problems` held-out problems are answered with
    at most `max_tokens` tokens. Raises UserError when `out` exists and is no empty folder, or `steps` is below 1.
    """
    if steps < 1:
        raise UserError(f"--steps={steps}: at least 1")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; name a new folder")
    vocabulary = countdown_tokenizer.build()
    model = build_model(vocabulary, seed)
    data = batches(vocabulary, generator(Stream.WARM_UP, seed))
    with ProgressBars(shown=progress) as bars:
        bar = bars.add("warm-up", steps)
        losses, tokens = [], 0
        for loss, count in warm_up(model, data, steps):
            losses.append(loss)
            tokens += count
            recent = losses[-max(1, steps // 10) :]
            bar.advance()
            bar.show(status=f"loss {sum(recent) / len(recent):.3f}")
        model.save_pretrained(out)
        vocabulary.save_pretrained(out)
        bar = bars.add("held-out problems", problems)
        evaluation = held_out(model, vocabulary, problems, max_tokens, bar.advance)
    Console(stderr=True).print(
        f"{out}: {model.num_parameters():,} parameters, {tokens:,} tokens trained on; {problems} held-out problems "
        f"within {max_tokens} tokens: right are {evaluation.interval}"
    )
    return Made(sum(recent) / len(recent), tokens, evaluation)


def build_model(vocabulary: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
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
        max_window_layers=4,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=vocabulary.eos_token_id,
        pad_token_id=vocabulary.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary.eos_token_id, pad_token_id=vocabulary.pad_token_id, do_sample=True
    )
    return model


def batches(vocabulary: PreTrainedTokenizerBase, rng: random.Random) -> Iterator[Example]:
    """Without end: tokens and labels, [B, T] each, padded on the right; prompts and padding are not trained on."""
    while True:
        examples = [_example(problem, vocabulary, rng) for problem in countdown.training_stream(CHUNK, rng)]
        cut: list[list[Example]] = [[]]
        for example in sorted((e for e in examples if e is not None), key=lambda e: len(e[0])):
            if (len(cut[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        for batch in cut:
            tokens, labels = ([example[part] for example in batch] for part in (0, 1))
            yield pad_sequence(tokens, True, vocabulary.pad_token_id), pad_sequence(labels, True, IGNORED)


def _example(problem: Problem, vocabulary: PreTrainedTokenizerBase, rng: random.Random) -> Example | None:
    prompt_text = countdown.PROMPT_TEMPLATE.replace("{question}", problem.prompt)
    prompt, output = vocabulary([prompt_text, countdown.search_trace(problem, rng) + countdown_tokenizer.EOS])[
        "input_ids"
    ]
    if len(output) > LONGEST_OUTPUT:
        return None
    return torch.tensor(prompt + output), torch.tensor([IGNORED] * len(prompt) + output)


def warm_up(model: Qwen3ForCausalLM, data: Iterator[Example], steps: int) -> Iterator[tuple[float, int]]:
    """Train on `steps` batches; yields each step's mean loss (nats a token) and its number of trained tokens.

    Muon (Jordan 2024) for the matrices of the layers and AdamW for the rest: AdamW alone learns far less in the time.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    layered = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in layered]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MUON_LR, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / RISE, max(FLOOR, 1 - (1 - FLOOR) * step / SCHEDULE))

    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    model.train()
    for _ in range(steps):
        tokens, labels = next(data)
        # Padding stands on the right of causal attention: it needs no mask.
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield loss.item(), int((labels != IGNORED).sum())


def held_out(
    model: Qwen3ForCausalLM,
    vocabulary: PreTrainedTokenizerBase,
    size: int,
    max_tokens: int,
    watch: Callable[[], None] = lambda: None,
    *,
    temperature: float = 1.0,
) -> Evaluation:
    """Accuracy on `size` held-out problems, one sample each, cut at `max_tokens`."""
    problems = countdown.problems(size, seed=0, held_out=True)
    prompts = encode_prompts(
        problems, vocabulary, PromptFormat(countdown.PROMPT_TEMPLATE), PromptLimits(context=CONTEXT)
    )
    engine = TorchEngine(model, eos_ids=[vocabulary.eos_token_id], slots=128, prefill_tokens=8192)
    return evaluate(
        engine,
        Scorer(CountdownReward(), vocabulary),
        list(zip(problems, prompts, strict=True)),
        EvaluationSettings(samples=1, sampling=Sampling(temperature), max_tokens=max_tokens, seed=0),
        on_answer=watch,
    )
