"""Makes a tiny model from scratch: a small Qwen3 that supervised training teaches the demonstrations of a task.

The warm-up is plain supervised learning on training problems, and so it was for `ulorl:tiny-maze`. The countdown model
`ulorl:tiny` stopped after 400 of 700 steps, so that its arithmetic is still unreliable and its search inefficient: that
leaves reinforcement learning something to improve.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from ulorl.common.progress import ProgressBars
from ulorl.data.prompts import PromptFormat, PromptLimits, encode_prompts
from ulorl.data.task_lookup import find_task, task_problems
from ulorl.engines.torch.torch_engine import TorchEngine
from ulorl.error_codes import ErrorCode
from ulorl.errors import UserError
from ulorl.evaluation.avg_at_k import Evaluation, EvaluationSettings, evaluate
from ulorl.rewards.scorer import Scorer
from ulorl.rewards.tasks import TaskReward
from ulorl.rng import Stream, generator
from ulorl.types import Problem, Prompted, Sampling
from ulorl.warmup.batched_muon import BatchedMuon
from ulorl.warmup.demonstrations import IGNORED, PROMPT_END, Example, check_demonstrations, training_batches
from ulorl.warmup.own_settings import own_settings
from ulorl.warmup.warm_up_config import WarmUpConfig
from ulorl.warmup.word_tokenizer import build_tokenizer


@dataclass(frozen=True)
class WarmUpResult:
    """The outcome of a warm-up."""

    loss: float  # nats per token, mean of the last tenth of the steps
    tokens: int  # trained on
    seconds: float  # of the training, by the clock
    cpu_seconds: float  # of the training, of this process
    evaluation: Evaluation  # on held-out problems, one sample each at temperature 1


def make_tiny(task: str, out: Path, config: WarmUpConfig, *, progress: bool = True) -> WarmUpResult:
    """Train a model on the task that `data.task_lookup.find_task` finds, and save it in `out` as a transformers folder.

    The same settings and machine give the same weights. At the end held-out problems are answered, as `config` says.
    Raises UserError when `out` exists and is no empty folder, and for a task that cannot be used.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; name a new folder", code=ErrorCode.OUTPUT_EXISTS, file=out)
    with own_settings():
        definition = find_task(task)
        tokenizer = build_tokenizer(definition.words, config.context)
        check_demonstrations(definition, tokenizer, config, generator(Stream.WARM_UP, config.seed))
        held_out_prompts(task, tokenizer, config)  # raises before the training
    disable_progress_bar()  # transformers' own, of saving
    model = build_model(tokenizer, config)
    data = training_batches(definition, tokenizer, config, generator(Stream.WARM_UP, config.seed))
    with own_settings(), ProgressBars(shown=progress) as bars:
        bar = bars.add("warm-up", config.steps)
        losses, tokens = [], 0
        clock, cpu = time.perf_counter(), time.process_time()
        for loss, count in warm_up(model, data, config):
            losses.append(loss)
            tokens += count
            recent = losses[-max(1, config.steps // 10) :]
            bar.advance()
            bar.show(status=f"loss {sum(recent) / len(recent):.3f}")
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        bar = bars.add("held-out problems", config.eval_problems)
        evaluation = evaluate_held_out(task, model, tokenizer, config, bar.advance)
    result = WarmUpResult(sum(recent) / len(recent), tokens, seconds, cpu_seconds, evaluation)
    Console(stderr=True).print(f"{out}: {model.num_parameters():,} parameters, {_summary(result, config)}")
    return result


def _summary(result: WarmUpResult, config: WarmUpConfig) -> str:
    return (
        f"{result.tokens:,} tokens trained on in {result.seconds:.0f} s ({result.cpu_seconds:.0f} CPU seconds), loss "
        f"{result.loss:.3f}; {config.eval_problems} held-out problems within {config.eval_tokens} tokens: right are "
        f"{result.evaluation.interval}, mean length {result.evaluation.mean_length:.0f}, "
        f"{result.evaluation.truncated:.1%} truncated"
    )


def build_model(tokenizer: PreTrainedTokenizerBase, config: WarmUpConfig) -> Qwen3ForCausalLM:
    """Return the untrained model; its weights depend only on the seed and the sizes in `config`."""
    model_config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=3 * config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden // config.heads,
        max_position_embeddings=config.context,
        max_window_layers=config.layers,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen3ForCausalLM(model_config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def warm_up(model: Qwen3ForCausalLM, data: Iterator[Example], config: WarmUpConfig) -> Iterator[tuple[float, int]]:
    """Train on `config.steps` batches; yield each step's mean loss (nats per token) and its number of trained tokens.

    Muon (Jordan 2024) trains the matrices of the layers and AdamW the rest: AdamW alone learns far less in the time.
    """
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    layered = set(map(id, matrices))
    rest = [p for p in model.parameters() if id(p) not in layered]
    optimizers: list[torch.optim.Optimizer] = [
        BatchedMuon(matrices, lr=config.muon_lr),
        torch.optim.AdamW(rest, lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, config.rate) for optimizer in optimizers]
    model.train()
    for _ in range(config.steps):
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


def held_out_problems(task: str, config: WarmUpConfig) -> list[Problem]:
    """Return the held-out problems that are answered at the end. Raises UserError when the task has fewer."""
    try:
        return task_problems(task, config.eval_problems, seed=0, settings=config.settings, held_out=True)
    except UserError as error:
        if error.key != "data.size":
            raise
        text = f"eval_problems={config.eval_problems}: the task has fewer held-out problems ({error}); ask for fewer"
        raise UserError(text, code=error.code, key="eval_problems") from error


def held_out_prompts(task: str, tokenizer: PreTrainedTokenizerBase, config: WarmUpConfig) -> list[Prompted]:
    """Return the held-out problems with their prompts. Raises UserError when the task has too few, and when one does
    not fit the model."""
    problems = held_out_problems(task, config)
    prompts = encode_prompts(problems, tokenizer, PromptFormat("{question}" + PROMPT_END), PromptLimits())
    longest = max(map(len, prompts))
    if longest + config.eval_tokens > config.context:
        text = (
            f"a held-out problem of {longest} tokens and an answer of eval_tokens={config.eval_tokens} do not fit "
            f"context={config.context}; raise context, or lower eval_tokens"
        )
        raise UserError(text, code=ErrorCode.PROMPT_UNUSABLE, key="context")
    return list(zip(problems, prompts, strict=True))


def evaluate_held_out(
    task: str,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    config: WarmUpConfig,
    on_answer: Callable[[], None] = lambda: None,
    *,
    temperature: float = 1.0,
) -> Evaluation:
    """Measure the accuracy on held-out problems, one sample each. Raises UserError when the task's checker fails."""
    prompted = held_out_prompts(task, tokenizer, config)
    engine = TorchEngine(model, eos_ids=[tokenizer.eos_token_id], slots=128, prefill_tokens=8192)
    return evaluate(
        engine,
        Scorer(TaskReward(), tokenizer),
        prompted,
        EvaluationSettings(samples=1, sampling=Sampling(temperature), max_tokens=config.eval_tokens, seed=0),
        on_answer=on_answer,
    )
