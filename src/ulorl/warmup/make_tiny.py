"""Makes the tiny reasoner from scratch: a Qwen3 model of 0.8 million parameters, warmed up on search traces.

The warm-up is plain supervised learning on the training problems, stopped after STEPS of the SCHEDULE's steps. So its
arithmetic is still unreliable and its search inefficient, which leaves reinforcement learning something to improve; the
model was not damaged on purpose.

Shapes: B samples, T tokens of a sample.
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
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.avg_at_k import Evaluation, EvaluationSettings, evaluate
from ulorl.rewards.scorer import Scorer
from ulorl.rewards.tasks import CountdownReward
from ulorl.rng import Stream, generator
from ulorl.types import Problem, Sampling
from ulorl.warmup.countdown_tokenizer import EOS, build_tokenizer

STEPS = 400  # of the shipped model
SCHEDULE = 700  # steps of the whole warm-up, at whose end the learning rates are at their floor
CONTEXT = 1024  # tokens
LONGEST_OUTPUT = 512  # tokens; longer traces are left out of the warm-up
BATCH_TOKENS = 2048  # of one step, padding included
CHUNK = 512  # traces that are sorted by length together, so that batches contain little padding
MUON_LR, ADAMW_LR = 6e-3, 3e-3  # matrices; embedding and norms
RISE, FLOOR = 20, 0.1  # the rates rise over RISE steps and fall linearly to the share FLOOR
IGNORED = -100  # label of a token that is not trained on

Example = tuple[Tensor, Tensor]  # tokens and labels, [T] each


@dataclass(frozen=True)
class WarmUpResult:
    """The outcome of a warm-up."""

    loss: float  # nats per token, mean of the last tenth of the steps
    tokens: int  # trained on
    evaluation: Evaluation  # on held-out problems, one sample each at temperature 1


def make_tiny(
    out: Path, *, seed: int = 0, steps: int = STEPS, problems: int = 500, max_tokens: int = 384, progress: bool = True
) -> WarmUpResult:
    """Train the model for `steps` steps and save it in `out` as a transformers folder.

    The same seed, steps and machine give the same weights. At the end `problems` held-out problems are answered with
    at most `max_tokens` tokens. Raises UserError when `out` exists and is no empty folder, or `steps` is below 1.
    """
    if steps < 1:
        problem = f"--steps={steps}: at least 1"
        raise UserError(problem, code=ErrorCode.COMMAND_LINE, key="--steps")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; name a new folder", code=ErrorCode.OUTPUT_EXISTS, file=out)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    data = training_batches(tokenizer, generator(Stream.WARM_UP, seed))
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
        tokenizer.save_pretrained(out)
        bar = bars.add("held-out problems", problems)
        evaluation = evaluate_held_out(model, tokenizer, problems, max_tokens, bar.advance)
    Console(stderr=True).print(
        f"{out}: {model.num_parameters():,} parameters, {tokens:,} tokens trained on; {problems} held-out problems "
        f"within {max_tokens} tokens: right are {evaluation.interval}"
    )
    return WarmUpResult(sum(recent) / len(recent), tokens, evaluation)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """Return the untrained model; its weights depend only on `seed`."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
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
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def training_batches(tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Iterator[Example]:
    """Yield tokens and labels, [B, T] each, without end. They are padded on the right; only outputs are trained on."""
    while True:
        examples = [_example(problem, tokenizer, rng) for problem in countdown.training_stream(CHUNK, rng)]
        cut: list[list[Example]] = [[]]
        for example in sorted((e for e in examples if e is not None), key=lambda e: len(e[0])):
            if (len(cut[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                cut.append([])
            cut[-1].append(example)
        rng.shuffle(cut)
        for batch in cut:
            tokens, labels = ([example[part] for example in batch] for part in (0, 1))
            yield pad_sequence(tokens, True, tokenizer.pad_token_id), pad_sequence(labels, True, IGNORED)


def _example(problem: Problem, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Example | None:
    prompt_text = countdown.PROMPT_TEMPLATE.replace("{question}", problem.prompt)
    prompt, output = tokenizer([prompt_text, countdown.search_trace(problem, rng) + EOS])["input_ids"]
    if len(output) > LONGEST_OUTPUT:
        return None
    return torch.tensor(prompt + output), torch.tensor([IGNORED] * len(prompt) + output)


def warm_up(model: Qwen3ForCausalLM, data: Iterator[Example], steps: int) -> Iterator[tuple[float, int]]:
    """Train on `steps` batches; yield each step's mean loss (nats per token) and its number of trained tokens.

    Muon (Jordan 2024) trains the matrices of the layers and AdamW the rest: AdamW alone learns far less in the time.
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
        # Padding is on the right, which causal attention does not see: it needs no mask.
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield loss.item(), int((labels != IGNORED).sum())


def evaluate_held_out(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    max_tokens: int,
    on_answer: Callable[[], None] = lambda: None,
    *,
    temperature: float = 1.0,
) -> Evaluation:
    """Measure the accuracy on `size` held-out problems, one sample each, cut at `max_tokens`."""
    problems = countdown.problems(size, seed=0, held_out=True)
    prompts = encode_prompts(
        problems, tokenizer, PromptFormat(countdown.PROMPT_TEMPLATE), PromptLimits(context=CONTEXT)
    )
    engine = TorchEngine(model, eos_ids=[tokenizer.eos_token_id], slots=128, prefill_tokens=8192)
    return evaluate(
        engine,
        Scorer(CountdownReward(), tokenizer),
        list(zip(problems, prompts, strict=True)),
        EvaluationSettings(samples=1, sampling=Sampling(temperature), max_tokens=max_tokens, seed=0),
        on_answer=on_answer,
    )
